"""One training step: gradients of a batch, averaged over parts and processes, clipped, checked and applied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from dept_vl.model.engine.graphs import Recorder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.training.captured import Recordings, Touched
from dept_vl.training.optimizer import GatedAdamW, set_learning_rates
from dept_vl.types import Batch

ALIGNMENT = 32  # numbers; where a parameter's gradient may begin, for kernels that read several at a time
ROW = 4096  # numbers whose squares are added up one by one; in fp32, over millions a norm would be some percent off


class StepResult(NamedTuple):
    """What a step found; its update was made if both are finite, and nothing was changed if not."""

    loss: float  # of the whole batch, over all parts and processes
    gradient_norm: float  # of all gradients together, before clipping


class TrainingStep:
    """Trains a model, which is on its device in full, batch by batch.

    The loss is the mean over all that the parts and processes weigh (``StepOutput.weight``), so that it does not matter
    how a batch is cut or shared. A parameter that a batch's task does not use stays as it is, with its moments.

    Args:
        optimizer: of the parameters to train.
        clip_norm: most that the norm of all gradients together may be.
        bf16: whether the layers that autocast knows compute in bf16.
        accumulation: parts that a process's batch is cut into, one after the other; a batch of fewer examples gives
            fewer.
        processes: how many train on batches of their own, and call this together.
        record: records the work as ``captured.recorder_for`` does.
        talks: whether to say why steps are not recorded.
    """

    def __init__(
        self,
        *,
        model: PromptedModel,
        optimizer: GatedAdamW,
        clip_norm: float,
        bf16: bool = False,
        accumulation: int = 1,
        processes: int = 1,
        record: Recorder | None = None,
        talks: bool = True,
    ) -> None:
        self.model, self.optimizer, self.clip_norm = model, optimizer, clip_norm
        self.bf16, self.accumulation, self.processes = bf16, accumulation, processes
        self.gradients = FlatGradients([value for group in optimizer.param_groups for value in group["params"]])
        sums = self.gradients.sums
        self._found, self._closed, self._divisor = sums.clone(), sums.new_zeros(()), sums.new_ones(())
        optimizer.found_inf, optimizer.grad_scale = self._closed, self._divisor
        self._recordings = Recordings(
            self._add_gradients, self._update, closed=sums, kept=model.buffers(), record=record, talks=talks
        )
        self._agreed: dict[str, Touched] = {}
        if processes > 1:  # drawn from the same seed, but on other processors perhaps with other last bits
            for parameter in self.gradients.parameters:
                distributed.broadcast(parameter.data, 0)

    def __call__(self, batch: Batch, *, factor: float, seed: int) -> StepResult:
        """Make a step at ``factor`` times the base learning rates; all its random numbers follow the seed.

        The device is waited for once, after all is launched.
        """
        self.model.train()
        parts = cut(batch, self.accumulation)
        self._recordings.prepare(parts)
        set_learning_rates(self.optimizer, factor)
        torch.manual_seed(seed)
        self.gradients.zero()
        touched = self._agree(batch.task, frozenset().union(*map(self._recordings.gradients, parts)))
        if self.processes > 1:
            self.gradients.add_up_processes()
        with self.gradients.only(touched):
            self._recordings.update(touched)
        return StepResult(*self._found.tolist())

    def _add_gradients(self, batch: Batch) -> Touched:
        """Add up the gradients of loss times weight, both of these, and which parameters have a gradient."""
        self.gradients.touched.clear()
        # A graph must not keep casts of parameters that change.
        with torch.autocast(batch.text_ids.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            output = self.model(batch)
        weighted = output.loss.float() * output.weight
        weighted.backward()
        self.gradients.sums.add_(torch.stack([weighted.detach(), output.weight.float()]))
        return frozenset(self.gradients.touched)

    @torch.no_grad()
    def _update(self, touched: Touched) -> None:
        """Divide by the weight, clip as ``torch.nn.utils.clip_grad_norm_``, and update, if all is finite."""
        total, weight = self.gradients.sums
        norm = self.gradients.norm() / weight
        self._found.copy_(torch.stack([total / weight, norm]))
        # The fused kernel divides by the one and does nothing at all if the other is 1; both stay on the device.
        self._divisor.copy_(weight * ((norm + 1e-6) / self.clip_norm).clamp(min=1))
        self._closed.copy_(~self._found.isfinite().all())
        self.optimizer.step()

    def _agree(self, task: str, touched: Touched) -> Touched:
        """What a task's steps touch, on any process; between several, what its first step here touched."""
        if self.processes == 1:
            return touched
        if task not in self._agreed:
            marks = torch.zeros(len(self.gradients.parameters), device=self._found.device)
            marks[list(touched)] = 1
            distributed.all_reduce(marks, distributed.ReduceOp.MAX)
            self._agreed[task] = frozenset(marks.nonzero().flatten().tolist())
        return self._agreed[task]


class FlatGradients:
    """The gradients of parameters, one behind the other in one tensor of each type of numbers.

    Each parameter's ``grad`` is a part of it, where backward passes add up. ``sums`` are two numbers of a step, its
    weighted loss and its weight, which lie behind the gradients and so are added up over the processes with them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.touched: set[int] = set()  # the places of parameters that a backward pass came to
        starts, ends = [], {torch.float32: 0}
        for parameter in parameters:
            starts.append(ends.setdefault(parameter.dtype, 0))
            ends[parameter.dtype] += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self._flat = {
            dtype: parameters[0].new_zeros(-(-end // ROW) * ROW + 2 * (dtype == torch.float32), dtype=dtype)
            for dtype, end in ends.items()
        }
        self.sums = self._flat[torch.float32][-2:]
        self._views = []
        for place, (parameter, start) in enumerate(zip(parameters, starts, strict=True)):
            flat = self._flat[parameter.dtype]
            strides = torch.empty_like(parameter, device="meta").stride()  # which the optimizer's moments have too
            self._views.append(flat.as_strided(parameter.shape, strides, start))
            parameter.grad = self._views[-1]
            parameter.register_post_accumulate_grad_hook(partial(self._touch, place))  # type: ignore[no-untyped-call]

    def zero(self) -> None:
        """Begin anew."""
        for flat in self._flat.values():
            flat.zero_()

    def norm(self) -> Tensor:
        """Of all gradients together."""
        norms = []
        for dtype, flat in self._flat.items():
            rows = flat[: len(flat) // ROW * ROW].view(-1, ROW)
            precise = torch.promote_types(dtype, torch.float32)
            norms.append(torch.linalg.vector_norm(rows, dim=1, dtype=precise).float())
        norm: Tensor = torch.linalg.vector_norm(torch.cat(norms))
        return norm

    def add_up_processes(self) -> None:
        """Add what the other processes have, on all of them."""
        for flat in self._flat.values():
            distributed.all_reduce(flat)

    @contextmanager
    def only(self, touched: Touched) -> Iterator[None]:
        """Hide the gradients of other parameters, so that an optimizer leaves those as they are."""
        others = [place for place in range(len(self.parameters)) if place not in touched]
        for place in others:
            self.parameters[place].grad = None
        try:
            yield
        finally:
            for place in others:
                self.parameters[place].grad = self._views[place]

    def _touch(self, place: int, parameter: Tensor) -> None:
        self.touched.add(place)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch in so many parts, as equal as possible, but none of them empty."""
    size = len(batch.example_ids)
    parts = min(parts, size)
    ranges = [slice(size * part // parts, size * (part + 1) // parts) for part in range(parts)]
    return [replace(batch.map(itemgetter(rows)), example_ids=batch.example_ids[rows]) for rows in ranges]
