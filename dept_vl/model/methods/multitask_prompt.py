"""Multitask prompt tuning: a prompt of all tasks, changed by a rank-one matrix of each (Wang et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dept_vl.model.methods.insertion import Placement, choose_size, describe
from dept_vl.model.soft_prompt import SoftPrompt


class TaskScaledPrompt(SoftPrompt):
    """A task's prompt: the shared one times, number by number, ``u · vᵀ`` (equation 1 of the paper)."""

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        length, hidden_size = shared.shape
        self.shared = shared
        self.u = nn.Parameter(torch.ones(length))
        self.v = nn.Parameter(torch.ones(hidden_size))

    @property
    def prompt(self) -> Float[Tensor, "P H"]:  # type: ignore[override]  # a parameter there, and nobody sets it
        """The product now."""
        product: Tensor = self.shared * self.u[:, None] * self.v
        return product

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """What is the task's own."""
        return {"low_rank": {"u": self.u, "v": self.v}}


class MultitaskPrompt(SoftPrompt):
    """A prompt P [P H] that tasks share, and u [P] and v [H] of each, which start at 1: at the shared prompt.

    It stands before the encoder's text, in training and in generation. PEFT's trains vectors before the decoder's text
    too, which its ``generate`` leaves out. The paper first distils P from prompts that were trained for each task
    alone; here all of it is learned from the tasks' own examples.
    """

    def __init__(self, prompt: Float[Tensor, "P H"], *, tasks: Sequence[str]) -> None:
        super().__init__(prompt)
        self.tasks = nn.ModuleDict({task: TaskScaledPrompt(self.prompt) for task in tasks})

    def for_task(self, task: str) -> SoftPrompt:
        """The prompt of a task."""
        return cast(SoftPrompt, self.tasks[task])

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """P at the prompt's rate; the tasks' vectors, named by task, at the small one."""
        own = {task: self.for_task(task).groups()["low_rank"] for task in self.tasks}
        vectors = {f"{name}_{task}": value for task, values in own.items() for name, value in values.items()}
        return {**super().groups(), "low_rank": vectors}


def make_multitask_prompt(
    initial: Callable[[int], Float[Tensor, "P H"]], *, hidden_size: int, tasks: Sequence[str], allowed: int | None
) -> tuple[MultitaskPrompt, str]:
    """The longest prompt that the budget allows: ``P * H + K * (P + H)`` parameters for K tasks.

    Args:
        initial: gives a prompt of a length.
        allowed: parameters of the shared prompt and all tasks' vectors.

    Raises:
        UsageError: the budget has no room for a prompt of length 1.
    """
    names, count = ", ".join(tasks), len(tasks)
    placement = Placement(
        f"a prompt for {names}", (), lambda length: length * hidden_size + count * (length + hidden_size)
    )
    method, unit = "Multitask prompt tuning", "prompt length"
    placement, length = choose_size(method=method, unit=unit, placements=[placement], size=None, allowed=allowed)
    return MultitaskPrompt(initial(length), tasks=tasks), describe(method, unit, placement, length, allowed)
