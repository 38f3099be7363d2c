"""A frozen T5 with little to launch and little to keep: fused weights, one mask for all layers, no unused inputs saved.

The arithmetic is the library's (Raffel et al. 2020), arranged for speed: query, key and value of a layer are one
product; the scale of a norm is folded into the weights behind it; the keys and values that the decoder takes from the
encoder are one product for all layers; relative biases and masks are looked up together, once for all layers. The
library's own layers remain the reference, and the tests compare with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import T5ForConditionalGeneration
from transformers.activations import ACT2FN

from dept_vl.model.engine.cross_entropy import cross_entropy

COMPILED_SHAPES = 128  # for which torch may compile the layers; of itself it stops after eight


class _Shape(NamedTuple):
    """What the functions of layers need to know beside tensors."""

    heads: int
    epsilon: float
    dropout: float
    activate: Callable[[Tensor], Tensor]
    gated: bool


class LeanT5(nn.Module):
    """The encoder and the decoder of a T5, none of whose weights train.

    It computes in the weights' own type, whatever autocast says. In training mode dropout acts where T5 has it.

    Args:
        t5: the library's model, whose layers are taken over: it is left without them, so that no weight is held twice.
        alignment: encoder positions are padded to a multiple of it; attention kernels of a GPU want 8.
        compiled: whether torch.compile makes kernels of the layers; all layers of a stack share one function.
        checkpointed: whether the backward pass computes a layer again instead of keeping its states.
    """

    def __init__(
        self, t5: T5ForConditionalGeneration, *, alignment: int = 1, compiled: bool = False, checkpointed: bool = False
    ) -> None:
        super().__init__()
        config, encoder, decoder = t5.config, cast(Any, t5.encoder), cast(Any, t5.decoder)
        self.alignment, self.checkpointed = alignment, checkpointed
        self.start_id, self.pad_id = cast(int, config.decoder_start_token_id), cast(int, config.pad_token_id)
        self.end_id = cast(int, config.eos_token_id)
        self.heads, self.key_size = config.num_heads, config.d_kv
        self.dropout, self.epsilon = config.dropout_rate, config.layer_norm_epsilon
        self.gated, self.activate = config.is_gated_act, ACT2FN[config.dense_act_fn]
        self.embeddings, self.lm_head = decoder.embed_tokens, t5.lm_head
        self.head_scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.encoder_norm, self.decoder_norm = encoder.final_layer_norm, decoder.final_layer_norm
        self.encoder_bias = _EncoderBias(encoder.block[0].layer[0].SelfAttention)
        self.decoder_bias = _DecoderBias(decoder.block[0].layer[0].SelfAttention)
        cross = [
            weight.detach()
            for block in decoder.block
            for weight in (block.layer[1].EncDecAttention.k.weight, block.layer[1].EncDecAttention.v.weight)
        ]
        self.cross = _frozen(torch.cat(cross))
        self.encoder_layers, self.decoder_layers = _take_layers(encoder), _take_layers(decoder)
        self._encode_layer: Callable[..., Tensor] = _encode_layer
        self._decode_layer: Callable[..., Tensor] = _decode_layer
        if compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
            self._encode_layer = torch.compile(_encode_layer, dynamic=False)
            self._decode_layer = torch.compile(_decode_layer, dynamic=False)

    def encode(
        self,
        embedded: Float[Tensor, "B S H"],
        mask: Bool[Tensor, "B S"],
        *,
        visual_length: int = 0,
        vl_t5_positions: bool = False,
    ) -> tuple[Float[Tensor, "B S2 H"], Bool[Tensor, "B S2"]]:
        """The encoder's last states, and which positions are real; S2 is S, padded to the alignment.

        The arguments are as in ``MultimodalEncoder``.
        """
        length = mask.shape[1]
        more = -length % self.alignment
        with self._own_precision(embedded):
            hidden = self._drop(functional.pad(embedded.to(self.cross.dtype), (0, 0, 0, more)))
            mask = functional.pad(mask, (0, more))
            unplaced = (length - visual_length, length) if vl_t5_positions else None
            bias = self.encoder_bias(mask, unplaced)
            for layer in self.encoder_layers:
                hidden = self._run(self._encode_layer, hidden, bias, *layer.parameters())
            return self._drop(self.encoder_norm(hidden)), mask

    def cross_keys_values(self, states: Float[Tensor, "B S H"]) -> Float[Tensor, "layers 2 B heads S key"]:
        """What each layer of the decoder attends to."""
        with self._own_precision(states):
            both = functional.linear(states.to(self.cross.dtype), self.cross)
        return both.view(*both.shape[:2], len(self.decoder_layers), 2, self.heads, self.key_size).permute(
            2, 3, 0, 4, 1, 5
        )

    def decode(
        self,
        ids: Int64[Tensor, "B L"],
        cross: Float[Tensor, "layers 2 B heads S key"],
        mask: Bool[Tensor, "B S"],
    ) -> Float[Tensor, "B L H"]:
        """The decoder's last states at all of some given tokens, each of which sees those before it."""
        with self._own_precision(cross):
            bias = self.decoder_bias.of_all(ids.shape[1])
            return self._decode(ids, bias, cross, mask)

    def decode_one(
        self,
        ids: Int64[Tensor, "rows 1"],
        position: Int64[Tensor, ""],
        cache: Float[Tensor, "layers 2 rows heads longest key"],
        cross: Float[Tensor, "layers 2 B heads S key"],
        mask: Bool[Tensor, "B S"],
    ) -> Float[Tensor, "rows 1 H"]:
        """The decoder's last states at the tokens of one position, whose keys and values are put into the cache.

        Rows may be several to an example, as many to each, next to each other: beams, which share what they attend to
        in the encoder.
        """
        with self._own_precision(cross):
            bias = self.decoder_bias.of_one(position, cache.shape[4])
            return self._decode(ids, bias, cross, mask, cache=cache, position=position.reshape(1))

    def head(self, states: Float[Tensor, "B L H"]) -> Float[Tensor, "B L vocabulary"]:
        """The logits of the next token."""
        with self._own_precision(states):
            logits: Tensor = self.lm_head(states * self.head_scale)
        return logits

    def entropy(self, states: Float[Tensor, "B L H"], targets: Int64[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """The cross-entropy of each target token."""
        with self._own_precision(states):
            by_token = cross_entropy((states * self.head_scale).flatten(0, 1), self.lm_head.weight, targets.flatten())
        return by_token.view_as(targets)

    def _decode(
        self,
        ids: Tensor,
        bias: Tensor,
        cross: Tensor,
        mask: Tensor,
        *,
        cache: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        hidden = self._drop(self.embeddings(ids))
        hides = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        for number, layer in enumerate(self.decoder_layers):
            own = (None if cache is None else cache[number], position)
            arguments = (hidden, bias, cross[number], hides[:, None, None, :], *own, *layer.parameters())
            hidden = self._run(self._decode_layer, *arguments)
        return self._drop(self.decoder_norm(hidden))

    def _run(self, layer: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        shape = _Shape(self.heads, self.epsilon, dropout, self.activate, self.gated)
        if self.checkpointed and self.training and torch.is_grad_enabled():
            return checkpoint(layer, shape, *arguments, use_reentrant=False)
        return layer(shape, *arguments)

    def _drop(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, self.dropout, self.training)

    @contextmanager
    def _own_precision(self, tensor: Tensor) -> Iterator[None]:
        with torch.autocast(tensor.device.type, enabled=False):
            yield


class _Layer(nn.Module):
    """The weights of a layer, in the order in which the functions below take them."""

    def __init__(self, block: Any) -> None:  # noqa: ANN401 - the library's block
        super().__init__()
        attention, norm = block.layer[0].SelfAttention, block.layer[0].layer_norm
        self.qkv = _folded(norm, attention.q, attention.k, attention.v)
        self.out = _frozen(attention.o.weight)
        if len(block.layer) == 3:
            attention = block.layer[1].EncDecAttention
            self.cross_query = _folded(block.layer[1].layer_norm, attention.q)
            self.cross_out = _frozen(attention.o.weight)
        feed = block.layer[-1].DenseReluDense
        inner = (feed.wi_0, feed.wi_1) if hasattr(feed, "wi_0") else (feed.wi,)
        self.inner = _folded(block.layer[-1].layer_norm, *inner)
        self.outer = _frozen(feed.wo.weight)


class _EncoderBias(nn.Module):
    """T5's relative bias of every pair of positions, minus infinity (the lowest number) at keys that are padding."""

    def __init__(self, attention: Any) -> None:  # noqa: ANN401 - the library's, which holds the table of all layers
        super().__init__()
        self.reach = attention.relative_attention_max_distance  # from which on the bias is the same
        distances = torch.arange(-self.reach, self.reach + 1)
        table = _bias_of(attention, distances, bidirectional=True)
        # Two columns more: no bias, and a key that is not to be seen.
        hidden = torch.full_like(table[:, :1], torch.finfo(table.dtype).min)
        self.table = _frozen(torch.cat([table, torch.zeros_like(hidden), hidden], dim=1))

    def forward(self, mask: Bool[Tensor, "B S"], unplaced: tuple[int, int] | None) -> Float[Tensor, "B heads S S"]:
        """The bias; among ``unplaced`` positions, from one to before the other, and to them, there is none."""
        positions = mask.cumsum(dim=1) - 1
        relative = positions[:, None, :] - positions[:, :, None]
        column = relative.clamp(-self.reach, self.reach) + self.reach
        if unplaced is not None:
            places = torch.arange(mask.shape[1], device=mask.device)
            visual = (places >= unplaced[0]) & (places < unplaced[1])
            column = column.masked_fill(visual[:, None] | visual[None, :], 2 * self.reach + 1)
        column = column.masked_fill(~mask[:, None, :], 2 * self.reach + 2)
        return self.table[:, column].transpose(0, 1)


class _DecoderBias(nn.Module):
    """T5's relative bias of earlier positions, minus infinity (the lowest number) at later ones."""

    def __init__(self, attention: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.reach = attention.relative_attention_max_distance
        table = _bias_of(attention, -torch.arange(self.reach + 1), bidirectional=False)
        self.table = _frozen(torch.cat([table, torch.full_like(table[:, :1], torch.finfo(table.dtype).min)], dim=1))

    def of_all(self, length: int) -> Float[Tensor, "1 heads L L"]:
        """Of positions 0 to ``length``, each on those before it and itself."""
        places = torch.arange(length, device=self.table.device)
        return self._look_up(places[:, None] - places[None, :])

    def of_one(self, position: Int64[Tensor, ""], length: int) -> Float[Tensor, "1 heads 1 L"]:
        """Of one position, on ``length`` places of a cache."""
        return self._look_up((position - torch.arange(length, device=self.table.device))[None])

    def _look_up(self, back: Int64[Tensor, "Q K"]) -> Float[Tensor, "1 heads Q K"]:
        """The bias for so many tokens back; negative are those to come."""
        column = back.clamp(max=self.reach).masked_fill(back < 0, self.reach + 1)
        return self.table[:, column].unsqueeze(0)


def _encode_layer(
    shape: _Shape,
    hidden: Tensor,
    bias: Tensor,
    qkv: Tensor,
    out: Tensor,
    inner: Tensor,
    outer: Tensor,
) -> Tensor:
    query, key, value = _project(_norm(hidden, shape.epsilon), qkv, shape.heads)
    seen = _attend(query, key, value, bias, shape.dropout).transpose(1, 2).flatten(2)
    hidden = hidden + _dropped(functional.linear(seen, out), shape.dropout)
    return hidden + _feed_forward(_norm(hidden, shape.epsilon), inner, outer, shape)


def _decode_layer(
    shape: _Shape,
    hidden: Tensor,
    bias: Tensor,
    cross: Tensor,
    hides: Tensor,
    cache: Tensor | None,
    position: Tensor | None,
    qkv: Tensor,
    out: Tensor,
    cross_query: Tensor,
    cross_out: Tensor,
    inner: Tensor,
    outer: Tensor,
) -> Tensor:
    query, *own = _project(_norm(hidden, shape.epsilon), qkv, shape.heads)
    if cache is not None and position is not None:
        cache.index_copy_(3, position, torch.stack(own))
        own = [*cache]
    seen = _attend(query, own[0], own[1], bias, shape.dropout).transpose(1, 2).flatten(2)
    hidden = hidden + _dropped(functional.linear(seen, out), shape.dropout)
    query = functional.linear(_norm(hidden, shape.epsilon), cross_query)
    # Rows of one example are so many queries to the same keys.
    query = query.view(cross.shape[1], -1, shape.heads, cross.shape[-1]).transpose(1, 2)
    seen = _attend(query, cross[0], cross[1], hides, shape.dropout).transpose(1, 2).reshape(*hidden.shape[:2], -1)
    hidden = hidden + _dropped(functional.linear(seen, cross_out), shape.dropout)
    return hidden + _feed_forward(_norm(hidden, shape.epsilon), inner, outer, shape)


def _norm(hidden: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm; its scale is in the weights that come next."""
    return functional.rms_norm(hidden, hidden.shape[-1:], eps=epsilon)


def _project(hidden: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, ...]:
    """[B L H] to query, key and value, each [B heads L key]."""
    projected = functional.linear(hidden, weight).view(*hidden.shape[:2], 3, heads, -1)
    return tuple(projected.permute(2, 0, 3, 1, 4))


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """T5's attention, which does not scale the scores."""
    return functional.scaled_dot_product_attention(query, key, value, bias, dropout_p=dropout, scale=1.0)


def _feed_forward(hidden: Tensor, inner: Tensor, outer: Tensor, shape: _Shape) -> Tensor:
    wide = functional.linear(hidden, inner)
    if shape.gated:
        gate, values = wide.chunk(2, dim=-1)
        wide = shape.activate(gate) * values
    else:
        wide = shape.activate(wide)
    return _dropped(functional.linear(_dropped(wide, shape.dropout), outer), shape.dropout)


def _dropped(hidden: Tensor, dropout: float) -> Tensor:
    return functional.dropout(hidden, dropout) if dropout else hidden


def _take_layers(stack: Any) -> nn.ModuleList:  # noqa: ANN401 - the library's stack, which is left without layers
    layers = nn.ModuleList()
    while stack.block:
        layers.append(_Layer(stack.block[0]))
        del stack.block[0]  # one after the other, so that no more than one layer is held twice
    return layers


def _bias_of(attention: Any, distances: Tensor, *, bidirectional: bool) -> Float[Tensor, "heads distances"]:  # noqa: ANN401
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=bidirectional,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    weight: Tensor = attention.relative_attention_bias.weight.detach()
    return weight[buckets.to(weight.device)].T.contiguous()


def _folded(norm: Any, *linear: Any) -> nn.Parameter:  # noqa: ANN401 - the library's
    """The weights of layers that read the same normed states, with the norm's scale in them."""
    weight = torch.cat([one.weight.detach() for one in linear])
    wide = torch.promote_types(weight.dtype, torch.float32)
    return _frozen((weight.to(wide) * norm.weight.detach().to(wide)).to(weight.dtype))


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)
