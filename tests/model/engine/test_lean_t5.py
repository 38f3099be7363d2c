"""The lean layers against the library's: states, losses, gradients, one token at a time, precision, dropout.

Equality is shown in float64, where only the loss is rounded to fp32. What fp32 loses is
bounded, and what bf16 loses is compared with what the library loses.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.settings import BackboneSettings, MethodSettings, Settings, TaskSettings, TrainingSettings, VisualSettings
from dept_vl.types import Batch

Make = Callable[..., T5ForConditionalGeneration]
pytestmark = pytest.mark.usefixtures("exact_norms")
LOSS, GRADIENT = 1e-6, 1e-5  # the logits are fp32 in both
KINDS: dict[str, dict[str, object]] = {
    "v1.0": {},
    "v1.1": {"feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"},
    "untied": {"tie_word_embeddings": False, "scale_decoder_outputs": False},
    "deep decoder": {"num_decoder_layers": 3},
}


def build(
    make_t5: Make,
    backbone: Backbone,
    engine: str,
    *,
    method: str = "dept",
    kind: str = "v1.0",
    task: TaskSettings | None = None,
    rule: str = "joint",
    dtype: torch.dtype = torch.float64,
    checkpointed: bool = False,
    noise: float = 0.1,
) -> BuiltModel:
    """A model on the library's or the lean layers, everything else equal; trained tensors are away from zero."""
    t5 = make_t5(**KINDS[kind])
    generator = torch.Generator().manual_seed(5)
    for name, value in t5.named_parameters():  # norms' scales start at one, which would hide how they are folded
        if "layer_norm" in name:
            value.data += 0.3 * torch.randn(value.shape, generator=generator)
    settings = Settings(
        backbone=BackboneSettings(engine=engine),
        method=MethodSettings(name=method, budget_length=20, prompt_length=4, budget=None),
        tasks={"vqa": task or TaskSettings(max_text_length=8, max_target_length=4)},
        visual=VisualSettings(position_rule=rule),
        training=replace(TrainingSettings(), checkpoint_activations=checkpointed),
    )
    built = build_model(
        settings,
        backbone._replace(model=t5.to(dtype)),
        visual_tokens=4,
        feature_width=6,
        seed=0,
        answers={"vqa": ["red", "blue", "two"]},
    )
    with torch.no_grad():
        for group in built.groups:
            for value in group.parameters.values():
                value += noise * torch.randn(value.shape, generator=generator)
    if dtype == torch.float64:
        built.model.to(dtype).heads.float()
    for prompt in built.model.encoder.prompts().values():
        if hasattr(prompt, "trained_length"):
            prompt.trained_length.fill_(8)
    return built


def loss_and_gradients(built: BuiltModel, batch: Batch, *, train: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    built.model.train(train)
    torch.manual_seed(3)
    if next(built.model.parameters()).dtype == torch.float64:
        batch = replace(batch, visual_tokens=batch.visual_tokens.double(), boxes=batch.boxes.double())
    loss = built.model(batch).loss
    loss.backward()
    gradients = {
        name: value.grad for group in built.groups for name, value in group.parameters.items() if value.grad is not None
    }
    return loss.detach(), gradients


def assert_equal(ours: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == wanted.keys()
    assert ours
    whole = torch.cat([value.flatten() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        difference = (ours[name] - value).norm()
        assert difference <= tolerance * max(value.norm(), 1e-3 * whole), name


@pytest.mark.parametrize("train", [False, True], ids=["eval", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_librarys(
    kind: str, train: bool, make_t5: Make, backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch((5, 3, 8), pad=2)
    results = [
        loss_and_gradients(build(make_t5, backbone, engine, kind=kind), batch, train=train)
        for engine in ("library", "lean")
    ]
    (wanted_loss, wanted), (loss, gradients) = results
    # With dropout as well: numbers are drawn in the library's order.
    torch.testing.assert_close(loss, wanted_loss, rtol=LOSS, atol=0)
    assert_equal(gradients, wanted, GRADIENT)


@pytest.mark.parametrize("method", ["prompt", "adept", "dept_adept", "p_tuning", "mpt", "visual_only"])
def test_all_kinds_of_prompts_train_as_on_the_librarys_layers(
    method: str, make_t5: Make, backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch((5, 3))
    wanted_loss, wanted = loss_and_gradients(build(make_t5, backbone, "library", method=method), batch)
    loss, gradients = loss_and_gradients(build(make_t5, backbone, "lean", method=method), batch)
    torch.testing.assert_close(loss, wanted_loss, rtol=LOSS, atol=0)
    assert_equal(gradients, wanted, GRADIENT)


@pytest.mark.parametrize("rule", ["joint", "vl_t5"])
@pytest.mark.parametrize(
    "task",
    [
        TaskSettings(max_text_length=8, head="classification"),
        TaskSettings(max_text_length=8, head="first_step", module="nlvr2"),
        TaskSettings(max_text_length=8, loss="token"),
        TaskSettings(max_text_length=8, constrained=True),
    ],
    ids=lambda task: f"{task.head}-{task.loss}-{task.constrained}",
)
def test_every_head_gives_the_same_loss_and_the_same_answers(
    task: TaskSettings, rule: str, make_t5: Make, backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch((5, 3, 4), answers=3)
    library, lean = (build(make_t5, backbone, engine, task=task, rule=rule) for engine in ("library", "lean"))
    wanted_loss, wanted = loss_and_gradients(library, batch)
    loss, gradients = loss_and_gradients(lean, batch)
    torch.testing.assert_close(loss, wanted_loss, rtol=LOSS, atol=0)
    assert_equal(gradients, wanted, GRADIENT)
    double = replace(batch, visual_tokens=batch.visual_tokens.double(), boxes=batch.boxes.double())
    assert lean.model.eval().answer(double) == library.model.eval().answer(double)


def test_padding_to_an_alignment_changes_nothing(make_t5: Make) -> None:
    t5 = make_t5().double()
    plain, aligned = LeanT5(copy.deepcopy(t5)).eval(), LeanT5(t5, alignment=8).eval()
    torch.manual_seed(0)
    embedded, mask = torch.randn(3, 13, 16, dtype=torch.float64), torch.rand(3, 13) > 0.3
    for rule in (False, True):
        wanted, _ = plain.encode(embedded, mask, visual_length=4, vl_t5_positions=rule)
        states, longer = aligned.encode(embedded, mask, visual_length=4, vl_t5_positions=rule)
        assert states.shape[1] == longer.shape[1] == 16
        assert not longer[:, 13:].any()
        torch.testing.assert_close(states[:, :13][mask], wanted[mask], rtol=1e-10, atol=1e-10)


def test_far_positions_have_the_librarys_bias(make_t5: Make) -> None:
    t5 = make_t5()  # whose biases reach 16 positions
    torch.manual_seed(0)
    embedded = torch.randn(1, 50, 16)
    with torch.no_grad():
        wanted = t5.encoder(inputs_embeds=embedded).last_hidden_state
        states, _ = LeanT5(t5).eval().encode(embedded, torch.ones(1, 50, dtype=torch.bool))
    torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_one_token_at_a_time_equals_all_at_once(beams: int, make_t5: Make) -> None:
    lean = LeanT5(make_t5(**KINDS["v1.1"])).eval()
    torch.manual_seed(0)
    states, mask = torch.randn(2, 6, 16), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    ids = torch.randint(3, 20, (2 * beams, 5))
    cross = lean.cross_keys_values(states)
    wanted = lean.decode(ids, cross.repeat_interleave(beams, dim=2), mask.repeat_interleave(beams, dim=0))
    cache = torch.full((2, 2, 2 * beams, 4, 8, 4), 7.0)  # what stands in places not reached yet is not seen
    steps = [lean.decode_one(ids[:, one : one + 1], torch.tensor(one), cache, cross, mask) for one in range(5)]
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_real_model_loses_little_to_rounding(dtype: torch.dtype, make_batch: Callable[..., Batch]) -> None:
    """t5-mini against the library in float64: loss, and all gradients together."""
    mini = load_backbone(BackboneSettings())

    def run(engine: str, dtype: torch.dtype) -> tuple[float, Tensor]:
        built = build(lambda: copy.deepcopy(mini.model), mini, engine, dtype=dtype, noise=0)
        batch = make_batch((5, 3, 8, 8), seed=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, gradients = loss_and_gradients(built, batch)
        if dtype != torch.float64:
            assert {value.dtype for value in gradients.values()} == {torch.float32}  # what trains stays fp32
        return float(loss), torch.cat([value.double().flatten() for value in gradients.values()])

    true_loss, truth = run("library", torch.float64)
    errors = {}
    for engine in ("library", "lean"):
        loss, gradient = run(engine, dtype)
        assert loss == pytest.approx(true_loss, rel=1e-5 if dtype == torch.float32 else 2e-2)
        errors[engine] = float((gradient - truth).norm() / truth.norm())
    assert errors["lean"] < (1e-5 if dtype == torch.float32 else 1.5 * errors["library"])


def test_checkpointed_layers_give_the_same_gradients_with_dropout(
    make_t5: Make, backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch((5, 3))
    for engine in ("library", "lean"):
        wanted_loss, wanted = loss_and_gradients(build(make_t5, backbone, engine), batch, train=True)
        saving = build(make_t5, backbone, engine, checkpointed=True)
        loss, gradients = loss_and_gradients(saving, batch, train=True)
        torch.testing.assert_close(loss, wanted_loss, rtol=1e-6, atol=0)
        assert_equal(gradients, wanted, 1e-6)


@pytest.mark.parametrize("engine", ["library", "lean"])
def test_checkpointed_layers_keep_less(
    engine: str, make_t5: Make, backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    batch, kept = make_batch((8,) * 16), []
    for checkpointed in (False, True):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        built = build(make_t5, backbone, engine, checkpointed=checkpointed, dtype=torch.float32)
        built.model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = built.model(batch).loss
        kept.append(sum(sizes.values()))
        loss.backward()
    assert kept[1] < kept[0] / 2


def test_frozen_products_keep_no_inputs(make_t5: Make) -> None:
    """Of an encoder layer: two residuals to norm, attention's inputs and result, and the sign of the inner states."""
    lean = LeanT5(make_t5()).eval()
    shapes: list[torch.Size] = []
    weights = {value.data_ptr() for value in lean.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            shapes.append(tensor.shape)
        return tensor

    embedded = torch.randn(2, 8, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        lean.encode(embedded, torch.ones(2, 8, dtype=torch.bool))
    assert shapes.count(torch.Size([2, 8, 32])) == 2  # the inner states once a layer, for the activation


def test_compiled_layers_are_equal(tmp_path: Path) -> None:
    """In a process of its own: here shapes are checked at every call, which cannot be compiled."""
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    loss, gradient, breaks = map(float, result.stdout.split())
    assert loss < 1e-6
    assert gradient < 1e-5
    assert breaks == 0


COMPILED = """
import copy
import torch
from transformers import T5Config, T5ForConditionalGeneration
from dept_vl.model.engine.lean_t5 import LeanT5

torch.manual_seed(0)
config = T5Config(vocab_size=20, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0,
    decoder_start_token_id=0)
t5 = T5ForConditionalGeneration(config).requires_grad_(False).train()
results = []
for compiled in (False, True):
    lean = LeanT5(copy.deepcopy(t5), alignment=8, compiled=compiled).train()
    gradients = []
    for length in (6, 20, 6):
        embedded = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        mask = torch.arange(length) < torch.tensor([[length], [length - 3]])
        states, mask = lean.encode(embedded, mask)
        ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
        loss = lean.entropy(lean.decode(ids, lean.cross_keys_values(states), mask), ids).mean()
        loss.backward()
        gradients.append(embedded.grad.flatten())
    results.append((loss.detach(), torch.cat(gradients)))
(wanted_loss, wanted), (loss, gradient) = results
breaks = len(torch._dynamo.utils.counters["graph_break"])
print(float((loss - wanted_loss).abs()), float((gradient - wanted).norm() / wanted.norm()), breaks)
"""
