"""How large a method may be; and what every insertion of LoRA, (IA)3 and adapters keeps to, in every type of model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dept_vl.model.backbone import Backbone
from dept_vl.model.build import build_model
from dept_vl.model.methods.bottleneck import insert_adapter
from dept_vl.model.methods.insertion import Insertion, Placement, choose_size, describe
from dept_vl.model.methods.lora import insert_ia3, insert_lora
from dept_vl.settings import MethodSettings, Settings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

EVERYWHERE = Placement("every layer", ["a", "b"], lambda size: 100 * size)
ENCODER = Placement("the encoder's layers", ["a"], lambda size: 10 + 30 * size)
INSERT = {"lora": insert_lora, "ia3": insert_ia3, "adapter": insert_adapter, "adapter_drop": insert_adapter}
GENERATING = ("t5", "bart", "gpt2", "llama", "qwen2")
KINDS = (*GENERATING, "bert", "roberta")
IDS = torch.tensor([[5, 7, 9, 11], [4, 6, 8, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def choose(allowed: int | None, size: int | None = None) -> tuple[Placement, int]:
    return choose_size(method="LoRA", unit="rank", placements=[EVERYWHERE, ENCODER], size=size, allowed=allowed)


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (40, (ENCODER, 1)),
        (69, (ENCODER, 1)),
        (70, (ENCODER, 2)),
        (99, (ENCODER, 2)),
        (100, (EVERYWHERE, 1)),
        (199, (EVERYWHERE, 1)),
        (200, (EVERYWHERE, 2)),
    ],
)
def test_the_first_placement_that_fits_gets_the_largest_size(allowed: int, expected: tuple[Placement, int]) -> None:
    assert choose(allowed) == expected


@pytest.mark.parametrize(("fixed", "per_size"), [(0, 1), (0, 768), (5, 7), (999, 13)])
def test_one_more_would_overspend(fixed: int, per_size: int) -> None:
    placement = Placement("every layer", [], lambda size: fixed + per_size * size)
    for allowed in range(fixed + per_size, fixed + 20 * per_size, max(per_size // 5, 1)):
        _, size = choose_size(method="LoRA", unit="rank", placements=[placement], size=None, allowed=allowed)
        assert placement.cost(size) <= allowed < placement.cost(size + 1)


def test_a_given_size_is_kept_where_it_fits() -> None:
    assert choose(1000, size=3) == (EVERYWHERE, 3)
    assert choose(299, size=3) == (ENCODER, 3)
    assert choose(None, size=3) == (EVERYWHERE, 3)


@pytest.mark.parametrize(
    ("allowed", "size", "message"),
    [
        (
            39,
            None,
            "LoRA cannot meet the budget of 39 parameters: the nearest setting, rank 1 in the encoder's layers, costs "
            "40. Raise method.budget to that or choose another method",
        ),
        (
            1099,
            40,
            "LoRA cannot meet the budget of 1,099 parameters: the nearest setting, rank 40 in the encoder's layers, "
            "costs 1,210. Raise method.budget to that, lower the rank, or choose another method",
        ),
        (
            20,
            1,
            "LoRA cannot meet the budget of 20 parameters: the nearest setting, rank 1 in the encoder's layers, costs "
            "40. Raise method.budget to that or choose another method",
        ),
        (None, None, "LoRA has neither a rank nor a budget. Set method.budget, or the rank itself"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_nearest(allowed: int | None, size: int | None, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        choose(allowed, size)
    assert str(raised.value) == message


def test_a_size_is_told_with_its_share_of_the_budget() -> None:
    assert describe("LoRA", "rank", ENCODER, 2, 1000) == "LoRA: rank 2 in the encoder's layers: 70 of 1,000 parameters"
    assert describe("LoRA", "rank", EVERYWHERE, 20, None) == "LoRA: rank 20 in every layer: 2,000 parameters"


def insert(backbone: Backbone, method: str, *, allowed: int | None = 2000) -> Insertion:
    return INSERT[method](backbone, MethodSettings(name=method), allowed=allowed)


def outputs(backbone: Backbone) -> Tensor:
    """Logits, or the last states of an encoder."""
    decoder = {"decoder_input_ids": IDS[:, :3]} if backbone.family == "encoder_decoder" else {}
    output = backbone.model(input_ids=IDS, attention_mask=MASK, **decoder)
    values: Tensor = output.last_hidden_state if backbone.family == "encoder" else output.logits
    return values


@torch.no_grad()
def perturb(insertion: Insertion) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in insertion.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("kind", "method"), list(product(KINDS, INSERT)))
def test_a_fresh_insertion_leaves_the_model_as_it_was_and_a_trained_one_does_not(
    tiny: Callable[..., Backbone], kind: str, method: str
) -> None:
    backbone = tiny(kind)
    backbone.model.requires_grad_(False)  # torch has other kernels where gradients are wanted
    before = outputs(backbone)
    insertion = insert(backbone, method)
    assert torch.equal(outputs(backbone), before)
    perturb(insertion)
    assert (outputs(backbone) - before).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "method"), list(product(KINDS, INSERT)))
def test_gradients_reach_what_the_note_counts(tiny: Callable[..., Backbone], kind: str, method: str) -> None:
    backbone = tiny(kind)
    own = set(backbone.model.parameters())
    insertion = insert(backbone, method)
    perturb(insertion)
    backbone.model.requires_grad_(False)
    for parameter in insertion.parameters:
        parameter.requires_grad_(True)
    outputs(backbone).pow(3).sum().backward()
    assert set(insertion.parameters) == set(backbone.model.parameters()) - own
    assert all(value.grad is not None and value.grad.any() for value in insertion.parameters)
    assert insertion.group == "adapter"
    size = sum(value.numel() for value in insertion.parameters)
    assert insertion.note.endswith(f": {size:,} of 2,000 parameters")


@pytest.mark.parametrize(("kind", "method", "beams"), list(product(GENERATING, INSERT, (1, 3))))
def test_what_is_generated_with_a_cache_is_what_is_generated_without(
    tiny: Callable[..., Backbone], kind: str, method: str, beams: int
) -> None:
    backbone = tiny(kind)
    model: Any = backbone.model
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False}
    before = model.generate(input_ids=IDS[:, :3], **options)
    insertion = insert(backbone, method)
    assert model.generate(input_ids=IDS[:, :3], **options).tolist() == before.tolist()
    perturb(insertion)
    with_cache, without = (model.generate(input_ids=IDS[:, :3], use_cache=cache, **options) for cache in (True, False))
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize(("kind", "method"), list(product(KINDS, INSERT)))
def test_tensors_by_name_bring_back_the_outputs(tiny: Callable[..., Backbone], kind: str, method: str) -> None:
    trained, again = tiny(kind), tiny(kind)
    own = {name for name, _ in trained.model.named_parameters()}
    perturb(insert(trained, method))
    torch.manual_seed(9)  # another start
    insert(again, method)
    tensors = {name: value for name, value in trained.model.named_parameters() if name not in own}
    targets = dict(again.model.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            targets[name].copy_(value)
    assert torch.equal(outputs(again), outputs(trained))


@pytest.mark.parametrize(("kind", "method"), list(product(("t5", "bart", "gpt2", "llama", "bert"), INSERT)))
def test_under_bf16_weights_what_is_inserted_is_fp32(tiny: Callable[..., Backbone], kind: str, method: str) -> None:
    whole, half = tiny(kind), tiny(kind, torch.bfloat16)
    insertions = [insert(backbone, method) for backbone in (whole, half)]
    with torch.no_grad():
        for one, other in zip(*(insertion.parameters for insertion in insertions), strict=True):
            one.add_(0.1 * torch.randn_like(one))
            other.copy_(one)
    assert {value.dtype for value in insertions[1].parameters} == {torch.float32}
    states = outputs(half)
    assert states.dtype == torch.bfloat16
    difference = (states - outputs(whole)).abs().mean()
    assert difference < 0.1 * outputs(whole).abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        outputs(half).float().pow(2).sum().backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in insertions[1].parameters)


@pytest.mark.parametrize("method", INSERT)
def test_a_fresh_insertion_leaves_the_loss_on_images_as_it_was(
    tiny: Callable[..., Backbone], make_batch: Callable[..., Batch], method: str
) -> None:
    losses = []
    for name in ("visual_only", method):
        settings = Settings(method=MethodSettings(name=name, budget_length=100))
        built = build_model(settings, tiny("t5"), visual_tokens=4, feature_width=6, seed=0)
        built.model.eval()
        losses.append(built.model.loss(make_batch()).loss)
        added = built.groups[-1]
    torch.testing.assert_close(losses[1], losses[0])
    with torch.no_grad():
        for parameter in added.parameters.values():
            parameter.add_(1)
    assert (built.model.loss(make_batch()).loss - losses[0]).abs() > 1e-3
