"""Prefix tuning: learned keys and values before those of each attention (Li & Liang, ACL 2021).

PEFT's prefixes stand in the cache of the generated text: they miss T5's encoder, and a cache of fixed size has no room
for them. Here they come in where the library's models call their attention function, behind the cache: positions,
masks and caches stay as they are.
"""

from __future__ import annotations

from functools import partial
from operator import mul
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion, Placement, choose_size, describe
from dept_vl.model.methods.parts import layers_of
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError

ATTENTIONS: Any = cast(Any, AttentionInterface)()  # the library's functions by name, for models to choose from
MASKS: Any = cast(Any, AttentionMaskInterface)()  # what makes the masks that they take
PREFIXED, MEASURED = "dept_vl_prefix", "dept_vl_measured"  # our own
INITIAL_SCALE = 0.02  # standard deviation


class Prefix(nn.Module):
    """P keys and P values that every query of one attention sees, with no position and no position bias.

    They are trained as they are, without the network that Li & Liang put before them. No start leaves the model's
    outputs alone, as keys of zeros take their share of attention too: they are drawn small, and differ by row.
    """

    def __init__(self, length: int, *, key_width: int, value_width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(INITIAL_SCALE * torch.randn(length, key_width))
        self.values = nn.Parameter(INITIAL_SCALE * torch.randn(length, value_width))

    def forward(
        self, key: Float[Tensor, "B heads K key_width"], value: Float[Tensor, "B heads K value_width"]
    ) -> tuple[Float[Tensor, "B heads longer key_width"], Float[Tensor, "B heads longer value_width"]]:
        """The keys and values with the prefix before them."""
        return torch.cat([_rows(self.keys, key), key], dim=2), torch.cat([_rows(self.values, value), value], dim=2)


class _Attention(NamedTuple):
    """An attention of the backbone, and the widths of all its heads' keys and values together."""

    name: str
    module: nn.Module
    key_width: int
    value_width: int


def insert_prefix(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """Give each attention a prefix, or each of the encoder's; as long as the budget allows.

    Args:
        allowed: parameters that the prefixes may have.

    Raises:
        UsageError: the backbone's attention cannot be extended, it has no encoder where one is asked for, or the
            budget is too small.
    """
    model = backbone.model
    attentions = _attentions(backbone)
    widths = {one.name: one.key_width + one.value_width for one in attentions}
    placements = [
        Placement(f"every attention of {where}", names, partial(mul, sum(widths[name] for name in names)))
        for where, names in layers_of(backbone, method, list(widths)).items()
    ]
    placement, length = choose_size(
        method="Prefix tuning", unit="prefix length", placements=placements, size=None, allowed=allowed
    )
    prefixes = []
    for attention in attentions:
        if attention.name in placement.targets:
            prefix = Prefix(length, key_width=attention.key_width, value_width=attention.value_width)
            attention.module.prefix = prefix.to(model.device)
            prefixes.append(prefix)
    model.set_attn_implementation(PREFIXED)
    note = describe("Prefix tuning", "prefix length", placement, length, allowed)
    return Insertion("adapter", [value for prefix in prefixes for value in prefix.parameters()], note)


def prefixed_attention(
    module: nn.Module,
    query: Float[Tensor, "B heads Q key_width"],
    key: Float[Tensor, "B key_heads K key_width"],
    value: Float[Tensor, "B key_heads K value_width"],
    attention_mask: Bool[Tensor, "#B #heads Q K"] | Float[Tensor, "#B #heads Q K"] | None,
    *,
    position_bias: Float[Tensor, "#B #heads Q K"] | None = None,
    is_causal: bool | None = None,
    **options: Any,  # noqa: ANN401 - the library's own
) -> tuple[Float[Tensor, "B Q heads value_width"], None]:
    """The library's attention over the prefix, if the module has one, and the keys and values."""
    prefix = getattr(module, "prefix", None)
    if prefix is not None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is None and causal and query.shape[2] > 1:
            # The library leaves this rule to torch, which would count the prefix as positions.
            attention_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
        length, is_causal = len(prefix.keys), False
        key, value = prefix(key, value)
        if attention_mask is not None:
            seen = 1.0 if attention_mask.dtype == torch.bool else 0.0
            attention_mask = functional.pad(attention_mask, (length, 0), value=seen)
        if position_bias is not None:
            position_bias = functional.pad(position_bias, (length, 0))
    attended, _ = ATTENTIONS["sdpa"](
        module, query, key, value, attention_mask, position_bias=position_bias, is_causal=is_causal, **options
    )
    return attended, None


ATTENTIONS.register(PREFIXED, prefixed_attention)
MASKS.register(PREFIXED, MASKS["sdpa"])


def _attentions(backbone: Backbone) -> list[_Attention]:
    """Every attention of the backbone, with the widths that its keys and values have when it reads one token.

    Raises:
        UsageError: none of them asks the library for its attention function.
    """
    model: Any = backbone.model
    found = _measure(model) if model._supports_sdpa else []
    if not found:
        raise UsageError(
            f"Prefix tuning needs a backbone whose attention can be extended, and that of {backbone.name!r} "
            f"({model.config.model_type}) cannot. Choose another method, such as --method dept or --method lora, or "
            "another backbone, such as a T5, BART, GPT-2, Llama, Qwen, BERT or RoBERTa"
        )
    return found


@torch.no_grad()
def _measure(model: PreTrainedModel) -> list[_Attention]:
    """What calls the attention function while the model reads one token, each once. Works on the meta device too."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, _Attention] = {}

    def measure(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *more: object, **options: object
    ) -> tuple[Tensor, None]:
        name = names[id(module)]
        found[name] = _Attention(name, module, key[0, :, 0].numel(), value[0, :, 0].numel())
        attended, _ = ATTENTIONS["sdpa"](module, query, key, value, *more, **options)
        return attended, None

    # No mask function goes with this name, so that the library makes no mask.
    ATTENTIONS.register(MEASURED, measure)
    former = model.config._attn_implementation
    model.set_attn_implementation(MEASURED)
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)
    model.set_attn_implementation(former)
    return list(found.values())


def _rows(rows: Float[Tensor, "P width"], like: Float[Tensor, "B heads K head_width"]) -> Tensor:
    """Learned rows, cut into heads and repeated for each example, in the type of ``like``."""
    batch, heads, _, width = like.shape
    return rows.to(like.dtype).view(-1, heads, width).transpose(0, 1).expand(batch, -1, -1, -1)
