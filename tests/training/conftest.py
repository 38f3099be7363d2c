from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import T5ForConditionalGeneration

from dept_vl.command_line import StopSignal
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.settings import MethodSettings, OptimizerSettings, Settings, TaskSettings, TrainingSettings
from dept_vl.training.loop import TrainingResult, Validation, train
from dept_vl.types import Batch


@dataclass
class Bench:
    """A tiny run whose parts a test may exchange. Scores are given, a batch is a function of its step."""

    folder: Path
    built: BuiltModel
    settings: Settings
    make_batch: Callable[..., Batch]
    total_steps: int = 6
    scores: Sequence[float] | Mapping[str, Sequence[float]] = ()  # of every task, or of each
    share: float = 0.5
    stop: StopSignal = field(default_factory=StopSignal)
    change: Callable[[int, Batch], Batch] = lambda step, batch: batch
    validated: list[int] = field(default_factory=list)  # the steps, by the number of batches given
    given: list[int] = field(default_factory=list)  # the steps whose batches were given

    def run(self) -> TrainingResult:
        self.folder.mkdir(exist_ok=True)
        return train(
            model=self.built.model,
            groups=self.built.groups,
            batches_from=self._batches_from,
            validate=self._validate,
            settings=self.settings,
            total_steps=self.total_steps,
            folder=self.folder,
            accelerator=Accelerator(cpu=True),
            stop=self.stop,
        )

    def _batches_from(self, step: int) -> Iterator[Batch]:
        while True:
            self.given.append(step)
            names = list(self.settings.tasks)
            yield self.change(step, self.make_batch((5, 3), seed=step, task=names[step % len(names)]))
            step += 1

    def _validate(self, model: PromptedModel) -> dict[str, Validation]:
        assert not model.training
        step = self.given[-1] + 1
        self.validated.append(step)
        number = step // self.settings.training.evaluate_every
        found = {}
        for task in self.settings.tasks:
            scores = self.scores[task] if isinstance(self.scores, Mapping) else self.scores
            score = dict(enumerate(scores, start=1)).get(number, 0.0)
            found[task] = Validation({"accuracy": score, "number": None}, score, "yes", self.share)
        return found


@pytest.fixture
def make_bench(
    make_t5: Callable[..., T5ForConditionalGeneration], backbone: Backbone, make_batch: Callable[..., Batch]
) -> Callable[..., Bench]:
    """Runs of DePT on a T5 of their own, with ``training`` settings changed. Several tasks take turns one by one."""

    def make(
        folder: Path,
        *,
        method: str = "dept",
        tasks: Sequence[str] = ("vqa",),
        sharing: str = "shared",
        optimizer: OptimizerSettings | None = None,
        **training: object,
    ) -> Bench:
        settings = Settings(
            method=MethodSettings(name=method, budget_length=10, prompt_length=4, prompt_sharing=sharing),
            tasks={name: TaskSettings(name, max_text_length=8) for name in tasks},
            optimizer=optimizer or OptimizerSettings(),
            training=replace(TrainingSettings(evaluate_every=2, checkpoint_every=2, log_every=1), **training),
        )
        built = build_model(settings, backbone._replace(model=make_t5()), visual_tokens=4, feature_width=6, seed=0)
        torch.manual_seed(99)  # the loop must not depend on it
        return Bench(folder, built, settings, make_batch)

    return make
