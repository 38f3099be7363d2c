"""Tiny models and data, built in memory; shapes in annotations are checked here and only here."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

CHECKED = ("dept_vl.model", "dept_vl.data", "feature_extraction.backbones", "feature_extraction.store")
install_import_hook(list(CHECKED), "beartype.beartype")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from dept_vl.model.backbone import Backbone, tokenizer_digest, weight_digest
from dept_vl.types import Batch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"
WORDS = "what is the color of this shape are there any how many red blue green yes no two three dog cat ? vqa :".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine does not have."""
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="../shared is absent"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights for optional tests."""
    return SHARED


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("DEPT_VL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer that ends texts with </s>, as T5's does."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


@pytest.fixture
def make_t5() -> Callable[..., T5ForConditionalGeneration]:
    """Random T5s of 2 layers and hidden size 16, equal for equal seeds."""

    def make(seed: int = 0, **changes: object) -> T5ForConditionalGeneration:
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(WORDS) + 3,
            d_model=16,
            d_kv=4,
            d_ff=32,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            decoder_start_token_id=0,
            dropout_rate=0.1,
            initializer_factor=2.0,
        )
        config.update(changes)
        return T5ForConditionalGeneration(config).eval()

    return make


@pytest.fixture
def backbone(make_t5: Callable[..., T5ForConditionalGeneration], tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """The tiny T5 as a loaded backbone."""
    t5 = make_t5()
    return Backbone("tiny", t5, tokenizer, weight_digest(t5), tokenizer_digest(tokenizer))


@pytest.fixture
def backbone_folder(backbone: Backbone, tmp_path: Path) -> Path:
    """The tiny T5 as a local folder, for the command lines."""
    folder = tmp_path / "tiny-t5"
    backbone.t5.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Batches of given text lengths with random contents; ``pad`` more columns of padding, on either side."""

    def make(
        lengths: tuple[int, ...] = (5, 3),
        *,
        images: int = 1,
        tokens: int = 4,
        width: int = 6,
        pad: int = 0,
        pad_left: bool = False,
        seed: int = 0,
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        size, longest = len(lengths), max(lengths)
        ids = torch.zeros(size, longest + pad, dtype=torch.int64)
        mask = torch.zeros(size, longest + pad, dtype=torch.bool)
        for row, length in enumerate(lengths):
            text = torch.randint(3, len(WORDS) + 3, (length,), generator=generator)
            start = longest + pad - length if pad_left else 0
            ids[row, start : start + length] = text
            mask[row, start : start + length] = True
        corners = torch.rand(size, images, tokens, 4, generator=generator)
        return Batch(
            example_ids=tuple(f"example-{row}" for row in range(size)),
            text_ids=ids,
            text_mask=mask,
            visual_tokens=torch.randn(size, images, tokens, width, generator=generator),
            boxes=torch.cat([corners[..., :2] / 2, corners[..., 2:] / 2 + 0.5], dim=-1),
            visual_mask=torch.ones(size, images, tokens, dtype=torch.bool),
            target_ids=torch.randint(3, len(WORDS) + 3, (size, 3), generator=generator),
            target_mask=torch.ones(size, 3, dtype=torch.bool),
            target_weights=torch.ones(size),
        )

    return make
