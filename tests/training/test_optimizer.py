"""Learning rates, weight decay, and the optimizer's state in and out of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from dept_vl.model.trainable import ParameterGroup
from dept_vl.settings import OptimizerSettings
from dept_vl.training.optimizer import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    schedule_factor,
    set_learning_rates,
)
from feature_extraction.errors import DamagedError


def make_groups() -> list[ParameterGroup]:
    generator = torch.Generator().manual_seed(0)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator))

    return [
        ParameterGroup("prompt", {"prompt.prompt": parameter(3, 4)}, 0.3, 0.1),
        ParameterGroup("low_rank", {"prompt.a": parameter(5, 2), "prompt.b": parameter(2, 4)}, 1e-3, 0.0),
        ParameterGroup("visual", {"visual_embedding.w": parameter(4, 6)}, 1e-2, 0.5),
    ]


def step(groups: list[ParameterGroup], optimizer: torch.optim.AdamW, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for group in groups:
        for value in group.parameters.values():
            value.grad = torch.randn(value.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (10, 0.2, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (4, 0.0, [1.0, 0.75, 0.5, 0.25]),
        (4, 1.0, [0.25, 0.5, 0.75, 1.0]),
        (1, 0.1, [1.0]),
        (5, 0.1, [1.0, 0.8, 0.6, 0.4, 0.2]),  # half a step of warm-up is none
    ],
)
def test_the_schedule_rises_linearly_and_falls_linearly_to_zero(
    total: int, warmup: float, expected: list[float]
) -> None:
    factors = [schedule_factor(step, total_steps=total, warmup_fraction=warmup) for step in range(total)]
    assert factors == pytest.approx(expected)


def test_no_update_has_a_rate_of_zero_and_the_one_after_the_last_would() -> None:
    factors = [schedule_factor(step, total_steps=600, warmup_fraction=0.1) for step in range(601)]
    assert min(factors[:600]) > 0
    assert max(factors) == factors[59] == factors[60] == 1
    assert factors[600] == 0


def test_each_group_keeps_its_own_rate_under_the_schedule() -> None:
    optimizer = make_optimizer(make_groups(), OptimizerSettings())
    for factor in (0.5, 1.0, 0.25):
        set_learning_rates(optimizer, factor)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {"prompt": 0.3 * factor, "low_rank": 1e-3 * factor, "visual": 1e-2 * factor}


def test_the_first_step_moves_every_number_by_its_group_s_rate() -> None:
    """Adam's first update has size lr, whatever the gradient."""
    groups = make_groups()
    before = [[value.detach().clone() for value in group.parameters.values()] for group in groups]
    optimizer = make_optimizer(groups, OptimizerSettings())
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    set_learning_rates(optimizer, 0.5)
    step(groups, optimizer, 1)
    for group, old in zip(groups, before, strict=True):
        for value, former in zip(group.parameters.values(), old, strict=True):
            moved = (value - former).abs()
            torch.testing.assert_close(moved, torch.full_like(moved, group.learning_rate / 2), rtol=1e-3, atol=0)


def test_weight_decay_is_real_and_each_group_s_own() -> None:
    """A parameter whose gradient is zero shrinks by lr * weight decay."""
    groups = make_groups()
    before = [[value.detach().clone() for value in group.parameters.values()] for group in groups]
    optimizer = make_optimizer(groups, OptimizerSettings())
    set_learning_rates(optimizer, 0.5)
    for group in groups:
        for value in group.parameters.values():
            value.grad = torch.zeros_like(value)
    optimizer.step()
    for group, old in zip(groups, before, strict=True):
        shrinking = 1 - 0.5 * group.learning_rate * group.weight_decay
        for value, former in zip(group.parameters.values(), old, strict=True):
            torch.testing.assert_close(value.detach(), former * shrinking, rtol=1e-6, atol=0)


def test_betas_and_epsilon_come_from_the_settings() -> None:
    optimizer = make_optimizer(make_groups(), OptimizerSettings(beta1=0.8, beta2=0.95, epsilon=1e-3))
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    assert all(group["eps"] == 1e-3 for group in optimizer.param_groups)


def test_the_fused_kernel_computes_what_the_ordinary_loop_does() -> None:
    fused, ordinary = make_groups(), make_groups()
    optimizers = [make_optimizer(groups, OptimizerSettings()) for groups in (fused, ordinary)]
    for group in optimizers[1].param_groups:
        group.update(fused=False, foreach=False)
    for number in range(20):
        for groups, optimizer in zip((fused, ordinary), optimizers, strict=True):
            set_learning_rates(optimizer, 1 / (1 + number))
            step(groups, optimizer, number)
    for one, other in zip(fused, ordinary, strict=True):
        for name, value in one.parameters.items():
            torch.testing.assert_close(value, other.parameters[name], rtol=1e-6, atol=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            generator = torch.Generator().manual_seed(0)
            value = nn.Parameter(torch.randn(200_003, generator=generator))
            groups = [ParameterGroup("prompt", {"prompt.prompt": value}, 0.3, 0.1)]
            optimizer = make_optimizer(groups, OptimizerSettings())
            for number in range(3):
                step(groups, optimizer, number)
            found.append(value.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_for_a_graph_learning_rates_are_tensors_that_stay_the_same() -> None:
    plain, captured = make_groups(), make_groups()
    one = make_optimizer(plain, OptimizerSettings())
    other = make_optimizer(captured, OptimizerSettings(), capturable=True)
    rates = [group["lr"] for group in other.param_groups]
    for number, factor in enumerate((0.5, 1.0, 0.25)):
        for groups, optimizer in ((plain, one), (captured, other)):
            set_learning_rates(optimizer, factor)
            step(groups, optimizer, number)
    assert all(group["lr"] is rate for group, rate in zip(other.param_groups, rates, strict=True))
    assert [float(rate) for rate in rates] == pytest.approx([0.3 / 4, 1e-3 / 4, 1e-2 / 4])
    for groups, expected in zip(captured, plain, strict=True):
        for name, value in groups.parameters.items():
            torch.testing.assert_close(value, expected.parameters[name], rtol=1e-6, atol=1e-6)


def test_a_closed_gate_changes_nothing_and_gradients_are_divided_by_the_scale() -> None:
    groups, divided = make_groups(), make_groups()
    optimizer, other = (make_optimizer(one, OptimizerSettings()) for one in (groups, divided))
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(0.0), torch.tensor(4.0)
    step(groups, optimizer, 0)
    for one, theirs in zip(groups, divided, strict=True):
        for name, value in one.parameters.items():
            assert value.grad is not None
            theirs.parameters[name].grad = value.grad.clone()  # which the kernel has divided
    other.step()
    before = {name: value.clone() for name, value in optimizer_tensors(optimizer, groups).items()}
    assert all(torch.equal(value, before[name]) for name, value in optimizer_tensors(other, divided).items())
    optimizer.found_inf.fill_(1)
    step(groups, optimizer, 1)
    assert all(torch.equal(value, before[name]) for name, value in optimizer_tensors(optimizer, groups).items())
    for one, theirs in zip(groups, divided, strict=True):
        assert all(map(torch.equal, one.parameters.values(), theirs.parameters.values()))


def test_a_restored_optimizer_goes_on_with_the_same_bits() -> None:
    straight, stopped = make_groups(), make_groups()
    optimizers = [make_optimizer(groups, OptimizerSettings()) for groups in (straight, stopped)]
    for number in range(3):
        step(straight, optimizers[0], number)
        step(stopped, optimizers[1], number)
    tensors = load(save(optimizer_tensors(optimizers[1], stopped)))  # through the bytes of a file
    resumed = make_optimizer(stopped, OptimizerSettings())
    restore_optimizer(resumed, stopped, tensors)
    for number in range(3, 6):
        step(straight, optimizers[0], number)
        step(stopped, resumed, number)
    for one, other in zip(straight, stopped, strict=True):
        assert all(map(torch.equal, one.parameters.values(), other.parameters.values()))
    expected, got = optimizer_tensors(optimizers[0], straight), optimizer_tensors(resumed, stopped)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_state_is_named_like_the_parameters() -> None:
    groups = make_groups()
    optimizer = make_optimizer(groups, OptimizerSettings())
    assert optimizer_tensors(optimizer, groups) == {}
    step(groups, optimizer, 1)
    assert set(optimizer_tensors(optimizer, groups)) == {
        f"{name}.{moment}"
        for name in ("prompt.prompt", "prompt.a", "prompt.b", "visual_embedding.w")
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


def test_of_several_tasks_a_parameter_has_no_state_before_its_first_step() -> None:
    """Saved and restored so, it goes on with the same bits, whenever its turn comes."""
    straight, stopped = make_groups(), make_groups()
    optimizers = [make_optimizer(groups, OptimizerSettings()) for groups in (straight, stopped)]
    for groups, optimizer in zip((straight, stopped), optimizers, strict=True):
        step(groups[:2], optimizer, 0)
    tensors = load(save(optimizer_tensors(optimizers[1], stopped)))
    assert not any(name.startswith("visual_embedding") for name in tensors)
    resumed = make_optimizer(stopped, OptimizerSettings())
    restore_optimizer(resumed, stopped, tensors, several_tasks=True)
    for number in (1, 2):
        step(straight, optimizers[0], number)
        step(stopped, resumed, number)
    for one, other in zip(straight, stopped, strict=True):
        assert all(map(torch.equal, one.parameters.values(), other.parameters.values()))


def test_a_state_of_one_task_must_be_whole_and_one_of_several_may_not_be_in_parts() -> None:
    groups = make_groups()
    optimizer = make_optimizer(groups, OptimizerSettings())
    step(groups[:2], optimizer, 0)
    tensors = optimizer_tensors(optimizer, groups)
    with pytest.raises(DamagedError, match=r"first at 'visual_embedding\.w\.exp_avg': expected .*, got None"):
        restore_optimizer(make_optimizer(groups, OptimizerSettings()), groups, tensors)
    del tensors["prompt.a.exp_avg_sq"]
    with pytest.raises(DamagedError, match=r"first at 'prompt\.a\.exp_avg_sq': expected .*, got None"):
        restore_optimizer(make_optimizer(groups, OptimizerSettings()), groups, tensors, several_tasks=True)


def test_restored_moments_do_not_share_memory_with_the_checkpoint() -> None:
    groups = make_groups()
    optimizer = make_optimizer(groups, OptimizerSettings())
    step(groups, optimizer, 1)
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer, groups).items()}
    kept = {name: value.clone() for name, value in tensors.items()}
    restore_optimizer(optimizer, groups, tensors)
    step(groups, optimizer, 2)
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("name", "tensor", "shapes"),
    [
        ("prompt.a.exp_avg", None, "expected torch.Size([5, 2]), got None"),
        ("prompt.a.exp_avg", torch.zeros(4, 2), "expected torch.Size([5, 2]), got torch.Size([4, 2])"),
        ("prompt.c.step", torch.zeros(()), "expected None, got torch.Size([])"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_names_the_first_difference(
    name: str, tensor: torch.Tensor | None, shapes: str
) -> None:
    groups = make_groups()
    optimizer = make_optimizer(groups, OptimizerSettings())
    step(groups, optimizer, 1)
    tensors = optimizer_tensors(optimizer, groups) | {name: tensor}
    fresh = make_optimizer(groups, OptimizerSettings())
    with pytest.raises(DamagedError) as raised:
        restore_optimizer(fresh, groups, {key: value for key, value in tensors.items() if value is not None})
    assert str(raised.value) == (
        f"The optimizer state in the checkpoint does not fit the model, first at {name!r}: {shapes}. "
        "Delete that checkpoint to go on from the one before"
    )
    assert not fresh.state
