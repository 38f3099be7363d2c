"""Made-up costs and runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dept_vl.cost import Cost
from dept_vl.figures_of_paper.sweep_results import Run
from dept_vl.settings import Settings


@pytest.fixture(scope="session")
def cost_of() -> Callable[..., Cost]:
    """What settings cost: (m + 100) ms a step, (m + 900) MB, 1,000 / (m + 100) examples per second."""

    def make(settings: Settings, *, device: str = "cpu", total: int = 13_000_000) -> Cost:
        method = settings.method
        length = method.budget_length if method.name == "prompt" else method.prompt_length
        seconds = (length + 100) / 1000
        return Cost(
            device=device,
            own=25_600,
            visual=100,
            heads=20,
            total=total + 25_720,
            prompt_length=length,
            prompt_parameters=length * 256,
            rank=None if method.name == "prompt" else 100 - length,
            step_seconds=seconds,
            step_seconds_low=0.9 * seconds,
            step_seconds_high=1.2 * seconds,
            peak_memory_bytes=(length + 900) * 10**6,
            latency_seconds=0.05,
            examples_per_second=1 / seconds,
            startup_seconds=4.0,
            validation_seconds=1.0,
            checkpoint_seconds=0.1,
            total_steps=None,
            training_seconds=None,
            synthetic=True,
        )

    return make


@pytest.fixture(scope="session")
def run_of() -> Callable[..., Run]:
    """A run that has ended with these scores, or has not ended well."""

    def make(task: str, method: str, seed: int = 0, *, varied: dict[str, str] | None = None, **scores: float) -> Run:
        state = "done" if scores else "failed"
        reason = "" if scores else "the loss is not finite"
        metric = next(iter(scores), "accuracy")
        return Run("t5-mini", task, method, varied or {}, seed, metric, scores, state, reason)

    return make
