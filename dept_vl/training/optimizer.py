"""AdamW over named groups, each with its own learning rate and weight decay, and one schedule for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import AdamW

from dept_vl.model.trainable import ParameterGroup
from dept_vl.settings import OptimizerSettings
from feature_extraction.errors import DamagedError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of one parameter


class GatedAdamW(AdamW):
    """AdamW (Loshchilov & Hutter 2019) whose kernel reads on the device how to scale an update, and whether to make it.

    Gradients are divided by ``grad_scale``; where ``found_inf`` is 1, parameters, moments and step counts stay as they
    are. These are the names that torch's fused kernels know from its gradient scaler for fp16.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None


def make_optimizer(
    groups: Sequence[ParameterGroup], settings: OptimizerSettings, *, capturable: bool | None = None
) -> GatedAdamW:
    """AdamW with decoupled weight decay in every group.

    Args:
        capturable: whether it may stand in a CUDA graph, for which learning rates are tensors; None: on a GPU.
    """
    device = next(iter(groups[0].parameters.values())).device
    capturable = device.type == "cuda" if capturable is None else capturable
    return GatedAdamW(
        [
            {
                "name": group.name,
                "params": list(group.parameters.values()),
                "lr": torch.tensor(group.learning_rate, device=device) if capturable else group.learning_rate,
                "base_lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
        capturable=capturable,
    )


def schedule_factor(step: int, *, total_steps: int, warmup_fraction: float) -> float:
    """What every learning rate is multiplied by in the update after ``step`` updates: linear up, then linear to zero.

    A function of the step alone: it is the same on any number of processes, and resuming needs no state.
    """
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (total_steps - step) / max(total_steps - warmup_steps, 1)


def set_learning_rates(optimizer: AdamW, factor: float) -> None:
    """Set each group's learning rate to its own base rate times the factor."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):  # which a graph reads: always the same
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_tensors(optimizer: AdamW, groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, for a safetensors file."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment].contiguous()
        for group in groups
        for name, parameter in group.parameters.items()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def restore_optimizer(
    optimizer: AdamW, groups: Sequence[ParameterGroup], tensors: dict[str, Tensor], *, several_tasks: bool = False
) -> None:
    """Put back what ``optimizer_tensors`` gave.

    Raises:
        DamagedError: the tensors are not those of the groups.
    """
    # A parameter that only some tasks train has no state before their first turn.
    present = {name.rsplit(".", 1)[0] for name in tensors}
    expected = {
        f"{name}.{moment}": torch.Size([]) if moment == "step" else parameter.shape
        for group in groups
        for name, parameter in group.parameters.items()
        if not several_tasks or name in present
        for moment in MOMENTS
    }
    got = {name: tensor.shape for name, tensor in tensors.items()}
    if got != expected:
        different = sorted(expected.items() ^ got.items())[0][0]
        raise DamagedError(
            f"The optimizer state in the checkpoint does not fit the model, first at {different!r}: expected "
            f"{expected.get(different)}, got {got.get(different)}. Delete that checkpoint to go on from the one before"
        )
    for group in groups:
        for name, parameter in group.parameters.items():
            if f"{name}.{MOMENTS[0]}" not in tensors:
                continue
            state = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS}
            optimizer.state[parameter] = {
                moment: tensor.to(parameter.device, copy=True) for moment, tensor in state.items()
            }
