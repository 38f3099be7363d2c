"""Made-up data of the largest shapes that settings allow, to measure what a run costs before there is real data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dept_vl.settings import Settings, TaskSettings
from dept_vl.tasks.task import Task, load_task
from dept_vl.training.task_data import TaskData
from dept_vl.types import Example, Target
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import StoredImage

WORD = "the"  # at least one token for any tokenizer
BATCHES = 2  # of training and of evaluation
ANSWERS = 1_000  # classes, where nothing says how many


class SyntheticImages:
    """A feature store of random numbers, in which every image id has the same ones."""

    def __init__(self, visual_tokens: int, feature_width: int) -> None:
        generator = np.random.default_rng(0)
        self.visual_tokens = visual_tokens
        self.feature_width = feature_width
        self._features = generator.normal(size=(visual_tokens, feature_width)).astype(np.float16)
        corners = np.sort(generator.random((visual_tokens, 2, 2), dtype=np.float32), axis=1)
        self._boxes = corners.reshape(visual_tokens, 4)

    def read(self, image_id: str, /) -> StoredImage:
        """The visual tokens and boxes of one image."""
        return StoredImage(self._features.copy(), self._boxes.copy(), np.ones(self.visual_tokens, dtype=bool))


def images_of(features: ExtractionSettings) -> SyntheticImages:
    """Images as an extraction with these settings would store them, which its backbone tells.

    Raises:
        UsageError, InputDataError, IncompatibleError: there is no such backbone, or its weights cannot be had.
    """
    import torch

    from feature_extraction.backbones import build_backbone

    backbone = build_backbone(features, torch.device("cpu"))
    return SyntheticImages(backbone.visual_tokens, backbone.feature_width)


def synthetic_tasks(settings: Settings, images: SyntheticImages | None) -> dict[str, TaskData]:
    """For each task examples of its longest texts, its longest targets, and as many images as it has."""
    return {name: _task_data(settings.of(name), images) for name in settings.tasks}


def _task_data(settings: Settings, images: SyntheticImages | None) -> TaskData:
    task = load_task(settings.task)
    answers = _answers(task, settings.task)
    count = BATCHES * max(settings.task.batch_size or settings.data.batch_size, settings.data.evaluation_batch_size)
    examples = _examples(count, settings.task, answers)
    return TaskData(task, settings, images, examples, examples, answers)


def _answers(task: Task, settings: TaskSettings) -> list[str] | None:
    if settings.head == "generation" and not settings.constrained:
        return None
    return list(task.labels) or [f"answer {number}" for number in range(settings.answer_count or ANSWERS)]


def _examples(count: int, settings: TaskSettings, answers: Sequence[str] | None) -> list[Example]:
    """Texts and targets have a word for each token that they may have, so that they are cut to their full length."""
    text, target = (" ".join([WORD] * length) for length in (settings.max_text_length, settings.max_target_length))
    return [
        Example(
            example_id=str(number),
            text=text,
            image_ids=tuple(f"{number}-{image}" for image in range(settings.images_per_example)),
            references=(target,),
            targets=(Target(answers[0] if answers else target, 1.0),),
        )
        for number in range(count)
    ]
