"""Tiny models and data; shapes in annotations are checked here and only here."""

# ruff: noqa: E402 - the environment and the import hook come before what they act on
from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

CHECKED = ("dept_vl.model", "dept_vl.data", "dept_vl.training", "dept_vl.inference", "feature_extraction")
install_import_hook(list(CHECKED), "beartype.beartype")

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from dept_vl.model.backbone import Backbone, tokenizer_digest, weight_digest
from dept_vl.train import main as train_main
from dept_vl.types import Batch
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import plan
from feature_extraction.store.writer import StoreWriter

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"
WORDS = (
    *("what", "is", "the", "color", "of", "this", "shape", "are", "there", "any", "how", "many", "red", "blue"),
    *("green", "yes", "no", "two", "three", "dog", "cat", "?", "vqa", ":", "true", "false"),
)
TOY_IMAGES = tuple(sorted(f"toy_{split}_{number:012d}" for split in ("train", "val", "test") for number in range(4)))
TOY_QUESTIONS = (
    ("what is the color ?", ("red", "blue", "green", "red")),
    ("is there any red shape ?", ("yes", "no", "no", "yes")),
    ("how many are there ?", ("two", "three", "two", "three")),
)
TOY_SETTINGS = (
    *("task.splits={train: train, validation: val, test: test}", "task.max_text_length=8", "task.max_target_length=4"),
    *("method.budget_length=10", "method.prompt_length=4", "data.batch_size=4", "data.evaluation_batch_size=4"),
    *("training.steps=7", "training.epochs=null", "training.evaluate_every=3", "training.checkpoint_every=2"),
    "training.log_every=1",
)


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


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library ``datasets`` with a cache of the test's own, and no connection."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state for a whole process; here a test stands for one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def tiny_t5(
    make_t5: Callable[..., T5ForConditionalGeneration],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny T5 as a local folder, for the command lines."""
    folder = tmp_path_factory.mktemp("backbones") / "tiny-t5"
    make_t5().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_vqa(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of questions and annotations in VQAv2's formats, so many of them in each split.

    A question asks for the color, the shape or the count of one of four images. Annotators agree, unless ``doubtful``.
    """

    def make(sizes: Mapping[str, int], *, doubtful: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("vqa")
        for offset, (split, size) in enumerate(sizes.items(), start=1):
            head = {"info": {}, "license": {}, "data_type": "toy", "data_subtype": split}
            questions, annotations = [], []
            for number in range(size):
                ids = {"question_id": 1000 * offset + number, "image_id": number % 4}
                text, answers = TOY_QUESTIONS[number // 4 % 3]
                answer, other = answers[number % 4], answers[(number + 1) % 4]
                given = [other if doubtful and number % 2 and person < 3 else answer for person in range(10)]
                questions.append({**ids, "question": text})
                annotations.append(
                    {
                        **ids,
                        "question_type": " ".join(text.split()[:2]),
                        "answer_type": "yes/no" if answer in ("yes", "no") else "other",
                        "answers": [{"answer_id": person, "answer": one} for person, one in enumerate(given, start=1)],
                    }
                )
            (folder / f"v2_OpenEnded_toy_{split}_questions.json").write_text(
                json.dumps({**head, "questions": questions})
            )
            (folder / f"v2_toy_{split}_annotations.json").write_text(json.dumps({**head, "annotations": annotations}))
        return folder

    return make


@pytest.fixture(scope="session")
def toy_vqa(make_vqa: Callable[..., Path]) -> Path:
    """A folder whose sizes are no multiples of a batch."""
    return make_vqa({"train": 14, "val": 6, "test": 7}, doubtful=True)


@pytest.fixture(scope="session")
def toy_nlvr2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sentences on two of the same images to train on, five to validate and six for the test, as in NLVR2."""
    folder = tmp_path_factory.mktemp("nlvr2")
    for split, size in (("train", 10), ("val", 5), ("test", 6)):
        rows = []
        for number in range(size):
            left, right = number % 4, number * 3 % 4
            images = [f"toy_{split}_{image:012d}" for image in (left, right)]
            sentence, label = ("there are two red dog", "True") if left == right else ("any blue cat", "False")
            identifier = f"{split}-{number // 2}-{number % 2}-0"
            rows.append({"identifier": identifier, "sentence": sentence, "label": label, "images": images})
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature store of the four images of each split of ``make_vqa``, with random features."""
    identity = {
        "backbone": "toy",
        "visual_tokens": 4,
        "feature_width": 6,
        "dtype": "float16",
        "weight_digest": "0" * 64,
    }
    writer = StoreWriter(
        tmp_path_factory.mktemp("features") / "store", plan(TOY_IMAGES, ExtractionSettings(shard_size=8), identity)
    )
    generator = np.random.default_rng(0)
    features = generator.normal(size=(len(TOY_IMAGES), 4, 6)).astype(np.float16)
    for row, name in enumerate(TOY_IMAGES):
        features[row, :, int(name[-1])] += 4  # which of the four images it is
    corners = generator.random(size=(len(TOY_IMAGES), 4, 2, 2), dtype=np.float32)
    boxes = np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=-1)
    for number in writer.missing:
        rows = writer.rows(number)
        part = slice(rows.start, rows.stop)
        writer.write(number, TOY_IMAGES[part], {"features": features[part], "boxes": boxes[part]}, [])
    writer.finish()
    return writer.path


@pytest.fixture(scope="session")
def train_arguments(tiny_t5: Path, toy_vqa: Path, toy_store: Path) -> Callable[..., list[str]]:
    """The command line of a run of seven steps, over more than two epochs of three, on the tiny T5 and the toy data."""

    def make(
        output: Path,
        *more: str,
        method: str = "dept",
        backbone: Path | str = tiny_t5,
        data: Path = toy_vqa,
        store: Path = toy_store,
    ) -> list[str]:
        chosen = {"task": "vqa", "method": method, "backbone": backbone, "data": data, "features": store}
        options = [text for name, value in (chosen | {"output": output}).items() for text in (f"--{name}", str(value))]
        return [*options, *TOY_SETTINGS, *more]

    return make


@pytest.fixture(scope="session")
def pair_arguments(
    train_arguments: Callable[..., list[str]], toy_vqa: Path, toy_nlvr2: Path
) -> Callable[..., list[str]]:
    """The command line of a run that trains the tasks vqa and nlvr2 together, of five steps in an epoch."""

    def make(output: Path, *more: str, **changes: object) -> list[str]:
        arguments = train_arguments(output, *more, **changes)
        for option, value in (("--task", "vqa,nlvr2"), ("--data", f"vqa={toy_vqa}")):
            arguments[arguments.index(option) + 1] = value
        return ["--data", f"nlvr2={toy_nlvr2}", *arguments]

    return make


@pytest.fixture(scope="session")
def finished_pair(pair_arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two tasks, each with a prompt of its own; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "pair"
    train_main(pair_arguments(folder, "method.prompt_sharing=per_task"))
    return folder


@pytest.fixture(scope="session")
def finished_run(train_arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of DePT; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "dept"
    train_main(train_arguments(folder))
    return folder


@pytest.fixture
def backbone_folder(tiny_t5: Path, tmp_path: Path) -> Path:
    """The tiny T5's folder to change."""
    return Path(shutil.copytree(tiny_t5, tmp_path / "tiny-t5"))


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Batches of given text lengths with random contents; ``pad`` more columns of padding, on either side.

    ``answers`` is the size of the task's vocabulary, whose scores are random too.
    """

    def make(
        lengths: tuple[int, ...] = (5, 3),
        *,
        images: int = 1,
        tokens: int = 4,
        width: int = 6,
        pad: int = 0,
        pad_left: bool = False,
        seed: int = 0,
        task: str = "vqa",
        answers: int = 0,
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
        scores = torch.rand(size, answers, generator=torch.Generator().manual_seed(seed))
        return Batch(
            task=task,
            example_ids=tuple(f"example-{row}" for row in range(size)),
            text_ids=ids,
            text_mask=mask,
            visual_tokens=torch.randn(size, images, tokens, width, generator=generator),
            boxes=torch.cat([corners[..., :2] / 2, corners[..., 2:] / 2 + 0.5], dim=-1),
            visual_mask=torch.ones(size, images, tokens, dtype=torch.bool),
            target_ids=torch.randint(3, len(WORDS) + 3, (size, 3), generator=generator),
            target_mask=torch.ones(size, 3, dtype=torch.bool),
            target_weights=torch.ones(size),
            answer_scores=scores,
        )

    return make
