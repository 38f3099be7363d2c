"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021) and AdapterDrop (Rücklé et al. 2021)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion, Placement, choose_size, describe
from dept_vl.model.methods.parts import layers_of, modules_for, widths
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError

# The last linear layers of attention and of feed-forward, by the type of model.
LAST_LAYERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    dict.fromkeys(("t5", "mt5"), ("o", "wo"))
    | dict.fromkeys(("bart", "mbart"), ("out_proj", "fc2"))
    | {"gpt2": ("attn.c_proj", "mlp.c_proj")}
    | dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("o_proj", "down_proj"))
    | dict.fromkeys(("bert", "roberta", "xlm-roberta"), ("attention.output.dense", "output.dense"))
)


class Adapter(nn.Module):
    """A sub-layer's output h becomes h + W_up gelu(W_down h), before the residual sum. W_up starts at zero."""

    def __init__(self, *, hidden_size: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, width)
        self.up = nn.Linear(width, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Float[Tensor, "... H"]) -> Float[Tensor, "... H"]:
        """The output with what the adapter adds."""
        inner = functional.gelu(self.down(hidden.to(self.down.weight.dtype)), approximate="tanh")
        added: Tensor = self.up(inner)
        return hidden + added.to(hidden.dtype)


class _Place(NamedTuple):
    """The last linear layer of a sub-layer."""

    name: str
    stack: str  # of layers: an encoder's or a decoder's
    layer: int  # from 0, the lowest
    feed_forward: bool


def insert_adapter(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """Put adapters after attention (also cross-attention) and feed-forward, or after feed-forward alone.

    AdapterDrop is the same without the lowest layers of each stack, here also while training.

    Args:
        allowed: parameters of all adapters; None for no limit.

    Raises:
        UsageError: the backbone's type is unknown or it has adapters already, no layer is left, or no width fits.
    """
    title = "AdapterDrop" if method.name == "adapter_drop" else "Adapter"
    last = modules_for(title, backbone, LAST_LAYERS)
    modules = dict(backbone.model.named_modules())
    if any(isinstance(module, Adapter) for module in modules.values()):
        raise UsageError(f"{backbone.name!r} has adapters already, and takes them once. Load the backbone anew")
    placement, width = choose_size(
        method=title,
        unit="width",
        placements=_placements(backbone, method, _places(modules, attention=last[0], feed_forward=last[1])),
        size=method.width,
        allowed=allowed,
    )
    parameters: list[nn.Parameter] = []
    for name in placement.targets:
        linear: Any = modules[name]
        linear.adapter = Adapter(hidden_size=widths(linear)[1], width=width).to(linear.weight.device)
        linear.register_forward_hook(_adapt)
        parameters += linear.adapter.parameters()
    return Insertion("adapter", parameters, describe(title, "width", placement, width, allowed))


def _placements(backbone: Backbone, method: MethodSettings, places: Sequence[_Place]) -> list[Placement]:
    """All that the settings allow: every layer before the encoder's, and all places before feed-forward alone.

    Raises:
        UsageError: AdapterDrop would drop every layer.
    """
    but = ""
    if method.name == "adapter_drop":
        places, but = _drop(places, method.dropped_fraction), f" but the lowest {100 * method.dropped_fraction:.0f} %"
    model = backbone.model
    placements = []
    for where, names in layers_of(backbone, method, [place.name for place in places]).items():
        for kind in ("all", "feed_forward") if method.adapter_places is None else (method.adapter_places,):
            chosen = [place.name for place in places if place.name in names and (kind == "all" or place.feed_forward)]
            sub_layers = "attention and feed-forward" if kind == "all" else "feed-forward"
            cost = partial(_cost, [widths(model.get_submodule(name))[1] for name in chosen])
            placements += [Placement(f"{sub_layers} of {where}{but}", chosen, cost)] if chosen else []
    if not placements:
        raise UsageError(
            f"method.dropped_fraction is {method.dropped_fraction}, which leaves none of these layers of "
            f"{backbone.name!r} with adapters. Lower it, for example to 0.4"
        )
    return placements


def _adapt(linear: nn.Module, _: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return cast(Tensor, cast(Any, linear).adapter(output))


def _places(modules: Mapping[str, nn.Module], *, attention: str, feed_forward: str) -> list[_Place]:
    found = []
    for name in modules:
        numbered = re.match(r"(.*?)\.(\d+)\.", name)
        ends_attention = name.endswith(f".{attention}")
        if numbered and (ends_attention or name.endswith(f".{feed_forward}")):
            found.append(_Place(name, numbered[1], int(numbered[2]), not ends_attention))
    return found


def _drop(places: Sequence[_Place], fraction: float) -> list[_Place]:
    """Without the lowest layers of each stack, that fraction of them, rounded."""
    layers = defaultdict(set)
    for place in places:
        layers[place.stack].add(place.layer)
    return [place for place in places if place.layer >= round(len(layers[place.stack]) * fraction)]


def _cost(hidden_sizes: Sequence[int], width: int) -> int:
    return sum(2 * hidden_size * width + width + hidden_size for hidden_size in hidden_sizes)
