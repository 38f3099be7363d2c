from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Placement
from dept_vl.model.methods.parts import choose_fixed, layers_of, modules_for, widths
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError

EVERYWHERE = Placement("k and v of every layer", ["a", "b"], lambda _: 1500)
ENCODER = Placement("k and v of the encoder's layers", ["a"], lambda _: 1000)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [(None, ["every layer", "the encoder's layers"]), ("all", ["every layer"]), ("encoder", ["the encoder's layers"])],
)
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_encoder_alone_comes_after_all_layers_unless_one_is_asked_for(
    tiny: Callable[..., Backbone], kind: str, placement: str | None, expected: list[str]
) -> None:
    backbone = tiny(kind)
    linears = [name for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear)]
    found = layers_of(backbone, MethodSettings(placement=placement), linears)
    assert list(found) == expected
    assert found.get("every layer", linears) == linears
    inside = [name for name in linears if "encoder." in name]
    assert found.get("the encoder's layers", inside) == inside
    assert 0 < len(inside) < len(linears)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_backbone_of_one_stack_has_all_layers_alone(tiny: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny(kind)
    assert layers_of(backbone, MethodSettings(), ["a.b"]) == {"every layer": ["a.b"]}
    assert layers_of(backbone, MethodSettings(placement="all"), ["a.b"]) == {"every layer": ["a.b"]}
    with pytest.raises(UsageError) as raised:
        layers_of(backbone, MethodSettings(placement="encoder"), ["a.b"])
    assert str(raised.value) == (
        f"method.placement is 'encoder', but {kind!r} ({kind}) is no encoder-decoder: all its layers are of one kind. "
        "Set method.placement=all"
    )


def test_a_type_that_a_method_does_not_know_is_refused_with_those_it_knows(tiny: Callable[..., Backbone]) -> None:
    assert modules_for("Adapter", tiny("t5"), {"t5": ("o", "wo")}) == ("o", "wo")
    with pytest.raises(UsageError) as raised:
        modules_for("Adapter", tiny("olmo"), {"t5": ("o", "wo"), "bart": ("out_proj", "fc2")})
    assert str(raised.value) == (
        "Adapter does not know the layers of 'olmo', which is of type 'olmo'. Choose a backbone of one of the types "
        "bart, t5; or another method, such as dept"
    )


def test_widths_are_those_of_input_and_output() -> None:
    assert widths(nn.Linear(3, 5)) == widths(Conv1D(5, 3)) == (3, 5)


def test_a_fixed_size_takes_the_first_placement_that_fits() -> None:
    placements = [EVERYWHERE, ENCODER]
    chosen = {
        allowed: choose_fixed(method="(IA)3", placements=placements, allowed=allowed) for allowed in (None, 1500, 1499)
    }
    assert chosen == {
        None: (EVERYWHERE, "(IA)3: k and v of every layer: 1,500 parameters"),
        1500: (EVERYWHERE, "(IA)3: k and v of every layer: 1,500 of 1,500 parameters"),
        1499: (ENCODER, "(IA)3: k and v of the encoder's layers: 1,000 of 1,499 parameters"),
    }
    with pytest.raises(UsageError) as raised:
        choose_fixed(method="(IA)3", placements=placements, allowed=999)
    assert str(raised.value) == (
        "(IA)3 cannot meet the budget of 999 parameters: it has no size, and the nearest setting, k and v of the "
        "encoder's layers, costs 1,000. Raise method.budget to that or choose another method"
    )
