from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dept_vl.data.dataset import ExampleDataset
from dept_vl.data.tokens import tokenize_examples
from dept_vl.types import Example, Frame, Target
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import Rejected, plan
from feature_extraction.store.reader import FeatureStore
from feature_extraction.store.writer import StoreWriter

IMAGES = tuple(f"image-{number:02d}" for number in range(12))
REJECTED = "image-11"
VISUAL_TOKENS, FEATURE_WIDTH = 4, 6
WORDS = [f"w{number}" for number in range(60)]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and no </s> of its own."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS, "red", "blue"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Eleven images whose features tell which image they are, and a rejected one."""
    settings = ExtractionSettings(shard_size=5)
    identity = {"visual_tokens": VISUAL_TOKENS, "feature_width": FEATURE_WIDTH, "dtype": "float16"}
    writer = StoreWriter(tmp_path_factory.mktemp("features") / "store", plan(IMAGES, settings, identity))
    for number in writer.missing:
        planned = [IMAGES[row] for row in writer.rows(number)]
        ids = [image_id for image_id in planned if image_id != REJECTED]
        features = np.stack([np.full((VISUAL_TOKENS, FEATURE_WIDTH), IMAGES.index(name), np.float16) for name in ids])
        images = {"features": features, "boxes": features[:, :, :4].astype(np.float32) / 16}
        writer.write(
            number, ids, images, [Rejected(REJECTED, "image-11.png", "truncated")] if REJECTED in planned else []
        )
    writer.finish()
    return FeatureStore.open(writer.path)


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., list[Example]]:
    def make(
        count: int, *, images: int = 1, longest: int = 22, targets: tuple[Target, ...] | None = None
    ) -> list[Example]:
        """Texts of 0 to ``longest`` words; the words, the images and the targets tell the example's number."""
        return [
            Example(
                example_id=f"q{number}",
                text=" ".join(WORDS[(number + place) % len(WORDS)] for place in range(number * 7 % (longest + 1))),
                image_ids=tuple(IMAGES[(number + image) % 11] for image in range(images)),
                targets=(Target("red", 0.9), Target("blue w1", 0.3)) if targets is None else targets,
            )
            for number in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def make_dataset(
    tokenizer: PreTrainedTokenizerFast, store: FeatureStore, make_examples: Callable[..., list[Example]]
) -> Callable[..., ExampleDataset]:
    def make(count: int, **options: object) -> ExampleDataset:
        examples = make_examples(count, **options)
        table = tokenize_examples(
            examples,
            tokenizer,
            frame=Frame(text_after=(1,), target_after=(1,)),
            prefix="",
            max_text_length=20,
            max_target_length=5,
            tokenizer_digest="words",
            cache=None,
        )
        return ExampleDataset(examples, table, store, task="toy")

    return make
