"""Adapters of many kinds with random contents, each with the model that answers for it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from dept_vl.config import load_settings
from dept_vl.data.loader import evaluation_batches
from dept_vl.inference import answer_batch, make_dataset
from dept_vl.model.adapter import Adapter, adapter_identity, save_adapter, trained_tensors
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import build_model
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.settings import BackboneSettings, Settings
from dept_vl.tasks.task import load_task
from dept_vl.types import Batch, Example
from feature_extraction import ExtractionSettings, FeatureStore, extract_features

LABELS = {"nlvr2": ("true", "false"), "sst2": ("0", "1")}


class Served(NamedTuple):
    """What a service can be started with, and what it should answer."""

    backbone: Path
    adapters: Path
    store: FeatureStore
    pictures: Path  # of the store's images
    alone: list[Alone]  # the adapters

    def of(self, name: str) -> Alone:
        """An adapter by name."""
        return next(one for one in self.alone if one.name == name)


class Alone(NamedTuple):
    """An adapter on a model of its own, as evaluation runs it."""

    name: str
    folder: Path
    settings: Settings
    model: PromptedModel
    backbone: Backbone

    def batch(self, text: str, image_ids: Sequence[str], store: FeatureStore | None) -> Batch:
        """One question as evaluation makes a batch of it."""
        example = Example(example_id="", text=text, image_ids=tuple(image_ids))
        dataset = make_dataset([example], store, self.backbone, self.settings, cache=None)
        return next(evaluation_batches(dataset, batch_size=1, bucket_width=1))

    def answers(self, texts: Sequence[str]) -> list[str]:
        """Its answers to texts without images, in batches of its own."""
        examples = [Example(example_id=str(number), text=text, image_ids=()) for number, text in enumerate(texts)]
        dataset = make_dataset(examples, None, self.backbone, self.settings, cache=None)
        found: dict[str, str] = {}
        for batch in evaluation_batches(dataset, batch_size=32, bucket_width=8):
            given = answer_batch(self.model, batch, load_task(self.settings.task), self.settings)
            found |= dict(zip(batch.example_ids, given, strict=True))
        return [found[example.example_id] for example in examples]

    def answer(self, text: str, image_ids: Sequence[str] = (), store: FeatureStore | None = None) -> str:
        """Its answer."""
        batch = self.batch(text, image_ids, store)
        (answer,) = answer_batch(self.model, batch, load_task(self.settings.task), self.settings)
        return answer


@pytest.fixture(scope="session")
def store(toy_store: Path) -> FeatureStore:
    """The toy store, opened."""
    return FeatureStore.open(toy_store)


def build_adapter(
    backbone: Backbone,
    store: FeatureStore,
    folder: Path,
    *overrides: str,
    task: str = "sst2",
    method: str = "dept",
    trained: int = 5,
    seed: int = 0,
    spread: float = 1.0,
    identity: Mapping[str, Any] | None = None,
) -> Alone:
    """An adapter of a task and a method, with random contents; ``trained`` rows of A are in use."""
    small = ("method.budget_length=24", "method.prompt_length=3", "task.max_text_length=12")
    settings = load_settings({"task": task, "method": method}, [*small, *overrides])
    pictured = settings.task.images_per_example > 0
    answers = {task: list(LABELS.get(task, ("yes", "no", "red")))}
    built = build_model(
        settings,
        backbone,
        visual_tokens=store.visual_tokens if pictured else 0,
        feature_width=store.feature_width if pictured else 0,
        seed=seed,
        answers=answers,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in built.groups:
            for parameter in group.parameters.values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    for prompt in built.model.encoder.prompts().values():
        if hasattr(prompt, "trained_length"):
            prompt.trained_length.fill_(trained)
    own = adapter_identity(backbone, task=task, method=method, features=store.identity if pictured else {})
    tensors = trained_tensors(built.model, built.groups)
    save_adapter(folder, Adapter({**own, **(identity or {})}, asdict(settings), tensors, answers))
    built.model.encoder.fold()
    return Alone(folder.name, folder, settings, built.model.eval(), backbone)


@pytest.fixture
def build() -> Callable[..., Alone]:
    """``build_adapter`` itself."""
    return build_adapter


@pytest.fixture
def make_adapter(backbone: Backbone, store: FeatureStore, tmp_path: Path) -> Callable[..., Alone]:
    """``build_adapter`` by name, on the tiny backbone and the toy store."""
    return lambda name, *overrides, **more: build_adapter(
        backbone, store, tmp_path / "adapters" / name, *overrides, **more
    )


@pytest.fixture
def many(make_adapter: Callable[..., Alone]) -> list[Alone]:
    """Adapters that differ in whatever they may differ in."""
    vqa = ("task.max_target_length=4", "task.num_beams=1")
    return [
        make_adapter("dept", seed=1, trained=9),
        make_adapter("untrained", seed=2, trained=0),
        make_adapter("long-prompt", "method.prompt_length=9", "method.rank=2", seed=3, trained=4),
        make_adapter("no-prompt", "method.prompt_length=0", seed=4, trained=7),
        make_adapter("official", "method.low_rank_scale=official", "task.max_text_length=6", seed=5, trained=6),
        make_adapter("plain", "method.budget_length=11", method="prompt", seed=6),
        make_adapter("prefixed", "task.prefix=is it red ?", seed=7),
        make_adapter("longer-answers", "task.max_target_length=9", seed=8),
        make_adapter("constrained", "task.constrained=true", *vqa, task="vqa", seed=9),
        make_adapter("vqa", *vqa, task="vqa", seed=10),
        make_adapter("vqa-beams", "task.num_beams=3", "task.max_target_length=5", task="vqa", seed=11),
        make_adapter("vl-t5-rules", "visual.position_rule=vl_t5", "visual.area=vl_t5", *vqa, task="vqa", seed=12),
        make_adapter("visual-only", *vqa, task="vqa", method="visual_only", seed=13),
        make_adapter("pairs", task="nlvr2", seed=14),
    ]


@pytest.fixture
def asked(many: list[Alone], store: FeatureStore) -> list[tuple[Alone, str, tuple[str, ...]]]:
    """Two questions to each of them, of different lengths and in mixed order, each with the images that it takes."""
    words = ("is", "there", "any", "red", "shape", "?", "how", "many", "blue", "dog", "are", "the", "cat")
    generator = np.random.default_rng(0)
    rows = []
    for one in [*many, *many[::-1]]:
        text = " ".join(generator.choice(words, size=generator.integers(1, 14)))
        rows.append((one, text, tuple(generator.choice(store.ids, one.settings.task.images_per_example))))
    return rows


@pytest.fixture(scope="session")
def served(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Adapters of text tasks and of tasks with one and two images, on features that were really extracted.

    Not to be changed.
    """
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    vision = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=16
    )
    ViTModel(vision, add_pooling_layer=False).save_pretrained(folder / "vit")
    ViTImageProcessorPil().save_pretrained(folder / "vit")
    (folder / "pictures").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    extraction = ExtractionSettings(backbone=f"hf/{folder / 'vit'}", image_size=32, batch_size=4, workers=0)
    extract_features(folder / "pictures", folder / "store", extraction, say=lambda line: None)
    store, backbone = FeatureStore.open(folder / "store"), load_backbone(BackboneSettings(name=str(tiny_t5)))
    vqa = ("task.max_target_length=5",)
    kinds: dict[str, dict[str, Any]] = {
        "colors": {"overrides": vqa, "task": "vqa", "seed": 1},
        "pairs": {"task": "nlvr2", "seed": 2},
        "sentiment": {"seed": 3, "trained": 9},
        "plain": {"overrides": ("method.budget_length=7",), "method": "prompt", "seed": 4},
    }
    alone = [
        build_adapter(backbone, store, folder / "adapters" / name, *more.pop("overrides", ()), **more)
        for name, more in kinds.items()
    ]
    return Served(tiny_t5, folder / "adapters", store, folder / "pictures", alone)
