"""Parts of a backbone that a method can take, and the choice among those whose size is fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Placement
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError


def layers_of(backbone: Backbone, method: MethodSettings, modules: Sequence[str]) -> dict[str, list[str]]:
    """The modules of every layer, and of an encoder-decoder's encoder alone, as far as method.placement allows.

    Raises:
        UsageError: the encoder is asked for, and the backbone is no encoder-decoder.
    """
    everywhere = {"every layer": list(modules)}
    if backbone.family != "encoder_decoder":
        if method.placement == "encoder":
            raise UsageError(
                f"method.placement is 'encoder', but {backbone.name!r} ({backbone.model.config.model_type}) is no "
                "encoder-decoder: all its layers are of one kind. Set method.placement=all"
            )
        return everywhere
    encoder = backbone.model.get_encoder()
    start = next(name for name, module in backbone.model.named_modules() if module is encoder) + "."
    inside = {"the encoder's layers": [name for name in modules if name.startswith(start)]}
    return {"all": everywhere, "encoder": inside}.get(method.placement or "", everywhere | inside)


def modules_for(method: str, backbone: Backbone, by_type: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """What a method takes in a backbone of this type.

    Raises:
        UsageError: names the types that the method knows.
    """
    kind = backbone.model.config.model_type
    if kind not in by_type:
        raise UsageError(
            f"{method} does not know the layers of {backbone.name!r}, which is of type {kind!r}. Choose a backbone of "
            f"one of the types {', '.join(sorted(by_type))}; or another method, such as dept"
        )
    return by_type[kind]


def widths(linear: nn.Module) -> tuple[int, int]:
    """Features that a linear layer reads and makes; GPT-2's layers name them in their own way."""
    layer = cast(Any, linear)
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else (layer.nx, layer.nf)


def choose_fixed(*, method: str, placements: Sequence[Placement], allowed: int | None) -> tuple[Placement, str]:
    """The first placement that the budget allows, for a method that has no size; and one line about it.

    Raises:
        UsageError: none fits; the message names the cheapest.
    """
    for placement in placements:
        cost = placement.cost(1)
        if allowed is None:
            return placement, f"{method}: {placement.where}: {cost:,} parameters"
        if cost <= allowed:
            return placement, f"{method}: {placement.where}: {cost:,} of {allowed:,} parameters"
    cheapest = min(placements, key=lambda one: one.cost(1))
    raise UsageError(
        f"{method} cannot meet the budget of {allowed:,} parameters: it has no size, and the nearest setting, "
        f"{cheapest.where}, costs {cheapest.cost(1):,}. Raise method.budget to that or choose another method"
    )
