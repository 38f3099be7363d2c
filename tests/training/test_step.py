"""A training step: equal to a plain one, however its batch is cut, and without effect where it is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5ForConditionalGeneration

from dept_vl.model.backbone import Backbone
from dept_vl.model.build import build_model
from dept_vl.model.engine.graphs import Recorder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import ParameterGroup
from dept_vl.settings import MethodSettings, OptimizerSettings, Settings, TaskSettings
from dept_vl.training.optimizer import GatedAdamW, make_optimizer, optimizer_tensors
from dept_vl.training.step import ROW, FlatGradients, StepResult, TrainingStep, cut
from dept_vl.types import Batch

OPTIMIZER = OptimizerSettings(prompt_lr=0.01, clip_norm=0.5, low_rank_weight_decay=0.1)
TWO = ("vqa", "caption")


@dataclass
class Trained:
    """A small model and what trains it."""

    model: PromptedModel
    groups: list[ParameterGroup]
    optimizer: GatedAdamW

    def step(self, **options: Any) -> TrainingStep:
        return TrainingStep(model=self.model, optimizer=self.optimizer, clip_norm=0.5, **options)

    def parameters(self) -> list[nn.Parameter]:
        return [value for group in self.groups for value in group.parameters.values()]

    def state(self) -> dict[str, Tensor]:
        """Copies of all that a step may change."""
        parameters = {name: value for group in self.groups for name, value in group.parameters.items()}
        tensors = {**parameters, **optimizer_tensors(self.optimizer, self.groups), **dict(self.model.named_buffers())}
        return {name: value.detach().clone() for name, value in tensors.items()}


MakeTrained = Callable[..., Trained]
MakeBatch = Callable[..., Batch]


@pytest.fixture
def make_trained(make_t5: Callable[..., T5ForConditionalGeneration], backbone: Backbone) -> MakeTrained:
    """Equal models for equal arguments."""

    def make(
        *,
        method: str = "dept",
        tasks: tuple[str, ...] = ("vqa",),
        dropout: float = 0.1,
        capturable: bool = False,
        loss: str = "example",
    ) -> Trained:
        settings = Settings(
            method=MethodSettings(name=method, budget_length=10, prompt_length=4, prompt_sharing="per_task"),
            tasks={name: TaskSettings(name, max_text_length=8, loss=loss) for name in tasks},
            optimizer=OPTIMIZER,
        )
        t5 = make_t5(dropout_rate=dropout)
        built = build_model(settings, backbone._replace(model=t5), visual_tokens=4, feature_width=6, seed=0)
        return Trained(built.model, built.groups, make_optimizer(built.groups, OPTIMIZER, capturable=capturable))

    return make


def rehearse(work: Callable[[], None]) -> Callable[[], None]:
    """What records a graph, without the graph: the same calls on the same memory."""
    for _ in range(3):
        work()
    return work


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], **tolerances: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **(tolerances or {"rtol": 0, "atol": 0}), msg=name)


def batches(make_batch: MakeBatch, tasks: tuple[str, ...] = ("vqa",)) -> Iterator[Batch]:
    """Of several shapes, each more than once, with contents and weights of their own."""
    shapes = [(5, 3, 2), (7, 2), (5, 3, 2), (4, 4, 1), (7, 2), (5, 3, 2)]
    for number, lengths in enumerate(shapes * 2):
        batch = make_batch(lengths, seed=number, task=tasks[number % len(tasks)])
        mask = batch.target_mask.clone()
        mask[0, -1] = False
        weights = torch.linspace(0.3, 1, len(lengths))
        yield replace(batch, target_mask=mask, target_weights=weights)


def train(trained: Trained, step: TrainingStep, stream: Iterator[Batch], steps: int) -> list[StepResult]:
    return [step(batch, factor=0.5 + number / 9, seed=number) for number, batch in enumerate(islice(stream, steps))]


@pytest.mark.parametrize("method", ["dept", "full", "lora", "adept"])
def test_it_is_the_plain_step_with_the_ordinary_optimizer(
    make_trained: MakeTrained, make_batch: MakeBatch, method: str
) -> None:
    plain, ours = make_trained(method=method), make_trained(method=method)
    groups = [dict(group, lr=0.3 * group["base_lr"], fused=None) for group in plain.optimizer.param_groups]
    ordinary = AdamW(groups, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.epsilon)
    step = ours.step()
    for number, batch in enumerate(islice(batches(make_batch), 3)):
        torch.manual_seed(number)
        loss = plain.model.train()(batch).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        found = step(batch, factor=0.3, seed=number)
        assert tuple(found) == pytest.approx((float(loss.detach()), float(norm)), rel=1e-5)
        for ours_of_it, value in zip(ours.parameters(), plain.parameters(), strict=True):
            assert ours_of_it.grad is not None
            assert value.grad is not None
            torch.testing.assert_close(ours_of_it.grad, value.grad, rtol=1e-4, atol=1e-6)
            value.grad = ours_of_it.grad.clone()  # the last bits of numbers near zero decide where Adam goes
        ordinary.step()
        ordinary.zero_grad()
        plain.optimizer.state = ordinary.state
        assert_equal(ours.state(), plain.state(), rtol=1e-5, atol=1e-6)


def test_a_gradient_below_the_limit_is_not_scaled_up(make_trained: MakeTrained, make_batch: MakeBatch) -> None:
    trained = make_trained()
    step = TrainingStep(model=trained.model, optimizer=trained.optimizer, clip_norm=1e6)
    batch = make_batch((5, 3))
    norm = step(batch, factor=1.0, seed=0).gradient_norm
    assert float(torch.cat([value.flatten() for value in gradients(trained)]).norm()) == pytest.approx(norm)


@pytest.mark.parametrize("loss", ["example", "token"])
@pytest.mark.parametrize("parts", [2, 3, 100])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(
    make_trained: MakeTrained, make_batch: MakeBatch, parts: int, loss: str
) -> None:
    """Without dropout, whose numbers are others; with the shares that parts of unlike target weights have."""
    whole, cut_up = (make_trained(dropout=0, loss=loss) for _ in range(2))
    expected = train(whole, whole.step(), batches(make_batch), 1)
    found = train(cut_up, cut_up.step(accumulation=parts), batches(make_batch), 1)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for ours, theirs in zip(gradients(cut_up), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expected = train(whole, whole.step(), batches(make_batch), 5)
    found = train(cut_up, cut_up.step(accumulation=parts), batches(make_batch), 5)
    assert found[-1] == pytest.approx(expected[-1], rel=1e-4)


def gradients(trained: Trained) -> list[Tensor]:
    return [value.grad for value in trained.parameters() if value.grad is not None]


def test_parts_are_as_equal_as_possible_and_never_empty(make_batch: MakeBatch) -> None:
    batch = make_batch((1, 2, 3, 4, 5, 6, 7))
    parts = cut(batch, 3)
    assert [len(part.text_ids) for part in parts] == [2, 2, 3]
    assert [name for part in parts for name in part.example_ids] == list(batch.example_ids)
    for name, tensor in batch.tensors().items():
        assert torch.equal(torch.cat([part.tensors()[name] for part in parts]), tensor)
    assert [len(part.example_ids) for part in cut(make_batch((3, 2)), 5)] == [1, 1]


@pytest.mark.parametrize("record", [None, rehearse])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_is_as_without_it(
    make_trained: MakeTrained, make_batch: MakeBatch, record: Recorder | None, bad: float
) -> None:
    trained, untroubled = make_trained(), make_trained()
    step, other = trained.step(record=record), untroubled.step()
    good = make_batch((5, 3))
    tokens = good.visual_tokens.clone()
    tokens[0, 0, 0, 0] = bad
    for seed in (1, 2):
        assert step(good, factor=1.0, seed=seed) == other(good, factor=1.0, seed=seed)
    before = trained.state()
    result = step(replace(good, visual_tokens=tokens), factor=1.0, seed=3)
    assert not torch.tensor(result).isfinite().any()
    assert_equal(trained.state(), before)
    assert step(good, factor=1.0, seed=4) == other(good, factor=1.0, seed=4)
    assert_equal(trained.state(), untroubled.state())


def test_a_first_step_that_is_not_finite_leaves_no_moments_but_zeros(
    make_trained: MakeTrained, make_batch: MakeBatch
) -> None:
    trained = make_trained()
    batch = make_batch((5, 3))
    before = trained.state() | {"encoder.prompt.prompts.vqa.trained_length": torch.tensor(5)}
    trained.step()(replace(batch, visual_tokens=batch.visual_tokens * torch.nan), factor=1.0, seed=0)
    after = trained.state()
    assert_equal({name: after[name] for name in before}, before)
    moments = after.keys() - before.keys()
    assert len(moments) == 3 * len(trained.parameters())
    assert not any(after[name].any() for name in moments)


@pytest.mark.parametrize("record", [None, rehearse])
def test_a_parameter_that_a_task_does_not_use_has_no_update_and_no_moments(
    make_trained: MakeTrained, make_batch: MakeBatch, record: Recorder | None
) -> None:
    """Neither momentum nor weight decay moves the prompt of the task whose turn it is not."""
    trained = make_trained(tasks=TWO)
    step = trained.step(record=record)
    states = [trained.state()]
    for number, task in enumerate(("vqa", "vqa", "caption", "vqa")):
        step(make_batch((5, 3), seed=number, task=task), factor=1.0, seed=number)
        states.append(trained.state())
    assert not any(name.startswith("prompt.caption") and "exp_avg" in name for name in states[2])
    for before, after, task in zip(states[1:], states[2:], ("vqa", "caption", "vqa"), strict=False):
        mine = {name for name in after if name.startswith(f"prompt.{task}.prompt")}
        other = {name for name in before if name.startswith("prompt.") and f".{task}." not in name}
        assert mine
        assert_equal({name: after[name] for name in other}, {name: before[name] for name in other})
        assert not any(name in before and torch.equal(before[name], after[name]) for name in mine)
    assert int(states[-1]["prompt.vqa.prompt.step"]) == 3
    assert int(states[-1]["prompt.caption.prompt.step"]) == 1
    assert int(states[-1]["visual_embedding.object_order.weight.step"]) == 4


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tasks", [("vqa",), TWO])
@pytest.mark.parametrize("capturable", [False, True])
def test_replayed_steps_have_the_bits_of_plain_ones(
    make_trained: MakeTrained, make_batch: MakeBatch, parts: int, tasks: tuple[str, ...], capturable: bool
) -> None:
    """Over batches of several shapes, dropout included: what comes before a recording leaves no trace."""
    plain, replayed = (make_trained(tasks=tasks, capturable=capturable) for _ in range(2))
    expected = train(plain, plain.step(accumulation=parts), batches(make_batch, tasks), 12)
    found = train(replayed, replayed.step(accumulation=parts, record=rehearse), batches(make_batch, tasks), 12)
    assert found == expected
    assert_equal(replayed.state(), plain.state())


def test_an_evaluation_in_between_sees_the_trained_parameters_and_changes_nothing(
    make_trained: MakeTrained, make_batch: MakeBatch
) -> None:
    trained, reference = make_trained(), make_trained()
    step, other = trained.step(record=rehearse), reference.step()
    for number, batch in enumerate(islice(batches(make_batch), 4)):
        step(batch, factor=1.0, seed=number)
        trained.model.eval()
        answers = trained.model.answer(batch)
        other(batch, factor=1.0, seed=number)
        assert answers == reference.model.eval().answer(batch)
    assert_equal(trained.state(), reference.state())


def test_bf16_computes_in_bf16_and_keeps_what_trains_in_fp32(make_trained: MakeTrained, make_batch: MakeBatch) -> None:
    full, half = make_trained(dropout=0), make_trained(dropout=0)
    expected = train(full, full.step(), batches(make_batch), 1)[0]
    found = train(half, half.step(bf16=True), batches(make_batch), 1)[0]
    assert found != expected
    assert found.loss == pytest.approx(expected.loss, rel=0.02)
    assert all(tensor.dtype == torch.float32 for name, tensor in half.state().items() if "length" not in name)


def test_the_dropout_follows_the_seed_alone(make_trained: MakeTrained, make_batch: MakeBatch) -> None:
    found = []
    for seed in (1, 1, 2):
        trained = make_trained()
        torch.rand(len(found))
        found.append(trained.step()(make_batch((5, 3)), factor=1.0, seed=seed))
    assert found[0] == found[1] != found[2]


def test_gradients_lie_in_one_tensor_of_each_type_with_the_strides_of_their_parameters() -> None:
    parameters = [
        nn.Parameter(torch.ones(5, 3)),
        nn.Parameter(torch.ones(7, dtype=torch.float64)),
        nn.Parameter(torch.ones(6, 4).T),
        nn.Parameter(torch.ones(3, 8)[:, :5]),
    ]
    flat = FlatGradients(parameters)
    for _ in range(2):  # they add up
        sum((value.sum() * (place + 1) for place, value in enumerate(parameters)), torch.tensor(0.0)).backward()
    grads = [value.grad for value in parameters]
    for place, (value, grad) in enumerate(zip(parameters, grads, strict=True)):
        assert grad is not None
        assert grad.stride() == torch.empty_like(value).stride()
        assert (grad == 2 * (place + 1)).all()
    first, _, third, _ = grads
    assert first is not None
    assert third is not None
    assert (
        first.untyped_storage().data_ptr()
        == third.untyped_storage().data_ptr()
        == flat.sums.untyped_storage().data_ptr()
    )
    flat.sums.fill_(1e3)  # no part of the norm
    expected = sum(value.numel() * (2 * (place + 1)) ** 2 for place, value in enumerate(parameters)) ** 0.5
    assert float(flat.norm()) == pytest.approx(expected)
    assert flat.touched == {0, 1, 2, 3}
    flat.zero()
    assert not flat.sums.any()
    assert not any(grad is None or grad.any() for grad in grads)


def test_the_norm_of_millions_is_exact() -> None:
    parameter = nn.Parameter(torch.zeros(1000 * ROW + 1))
    flat = FlatGradients([parameter])
    assert parameter.grad is not None
    parameter.grad.normal_(generator=torch.Generator().manual_seed(0))
    assert float(flat.norm()) == pytest.approx(float(parameter.grad.double().norm()), rel=1e-6)


def test_hidden_gradients_come_back_whatever_happens() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    flat = FlatGradients(parameters)
    grads = [value.grad for value in parameters]

    def fail() -> None:
        with flat.only(frozenset({1})):
            assert [value.grad is None for value in parameters] == [True, False, True]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(value.grad is grad for value, grad in zip(parameters, grads, strict=True))


class Watch(TorchDispatchMode):
    """Notes the operations that would wait for a GPU, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "lift_fresh"):
            self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["dept", "prompt", "lora", "full"])
def test_the_recorded_work_never_waits_for_the_device(
    make_trained: MakeTrained, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # While a graph is recorded, the library does not look whether a mask hides anything.
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    trained = make_trained(method=method, capturable=True)
    seen: list[set[str]] = []

    def watched(work: Callable[[], None]) -> Callable[[], None]:
        work()
        with Watch() as watch:
            work()
        seen.append(watch.seen)
        return work

    trained.step(record=watched)(make_batch((5, 3)), factor=1.0, seed=0)
    assert seen == [set(), set()]


@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [("vqa",), TWO])
@pytest.mark.parametrize("parts", [1, 2])
def test_on_a_gpu_graphs_give_the_steps_that_there_are_without(
    make_trained: MakeTrained, make_batch: MakeBatch, parts: int, tasks: tuple[str, ...]
) -> None:
    from dept_vl.training.captured import recorder_for

    device = torch.device("cuda")
    states, found = [], []
    for record in (None, recorder_for(device, checkpointed=False)):
        trained = make_trained(tasks=tasks)
        trained.model.to(device)
        trained = replace(trained, optimizer=make_optimizer(trained.groups, OPTIMIZER))
        stream = (batch.to(device) for batch in batches(make_batch, tasks))
        found.append(train(trained, trained.step(accumulation=parts, record=record), stream, 12))
        states.append(trained.state())
    assert [tuple(one) for one in found[1]] == [pytest.approx(one, rel=1e-4) for one in found[0]]
    assert_equal(states[1], states[0], rtol=1e-4, atol=1e-5)
