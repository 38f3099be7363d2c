"""Ladder side-tuning (Sung, Cho & Bansal 2022, "LST"): a small network beside a frozen T5, which alone is trained.

Gradients flow through the side network and never through a frozen block, so training stores no activation of the
frozen blocks but their outputs: this is the method for little memory. Beside each stack, where h_i is what the frozen
block i gives, e the stack's input, and mu_i = sigmoid(alpha_i / 0.1):

    s_0 = down(e)        s_i = block_i(mu_i * down_i(h_i) + (1 - mu_i) * s_{i-1})        i = 1 .. layers

block_i is the library's T5 block of width w with as many heads as the frozen one; in the decoder it attends to the
encoder's last s. The decoder's last state is the frozen one plus up(norm(s)), where up starts at zero: a fresh ladder
changes nothing. Side blocks use the frozen stack's position biases and masks, and its dropout. The published runs on
images and text have w = H / 4, which is 16,385,304 parameters beside T5-base: 7.46 % with the visual embedding.

What differs from the published code: side blocks start at the library's random values, not at pruned weights of the
backbone, which the paper finds better; the frozen decoder's last state is kept beside up(norm(s)); and visual tokens
enter the frozen encoder too, not only the side network. They get their gradients through the side network alone.
"""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, T5Config
from transformers.cache_utils import DynamicLayer
from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm, T5Stack

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion, Placement, choose_size, describe
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError

TEMPERATURE = 0.1  # of the gates
BLOCK_CALL = inspect.signature(T5Block.forward)


def insert_ladder(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """A side network of the given width, or of the largest that the budget allows.

    Raises:
        UsageError: the backbone is no T5, or the budget is too small.
    """
    model: Any = backbone.model
    if model.config.model_type != "t5":
        raise UsageError(
            f"Method lst runs a side network beside a T5 (v1.0, v1.1 or Flan), but the backbone {backbone.name!r} is "
            f"of type {model.config.model_type!r}. Choose a T5 with --backbone, such as t5-mini, or another --method, "
            "such as lora"
        )
    placement = Placement("every layer", (), lambda width: _count(model, width))
    placement, width = choose_size(
        method="lst", unit="width", placements=[placement], size=method.width, allowed=allowed
    )
    ladder = Ladder(model, width=width).to(model.device).train(model.training)
    ladder.encoder.attach(model.encoder)
    ladder.decoder.attach(model.decoder)
    model.ladder = ladder  # not in the stacks, where the library would record its blocks as theirs
    return Insertion("adapter", list(ladder.parameters()), describe("lst", "width", placement, width, allowed))


class Side(nn.Module):
    """The side network of one stack, which hooks run beside the stack's own blocks, whoever calls those."""

    def __init__(self, stack: T5Stack, *, width: int) -> None:
        super().__init__()
        config, layers, hidden_size = _side_config(stack.config, width), len(stack.block), stack.config.d_model
        self.enter = nn.Linear(hidden_size, width)
        self.down = nn.ModuleList(nn.Linear(hidden_size, width) for _ in range(layers))
        self.alpha = nn.Parameter(torch.zeros(layers))
        # In the library's cache the side blocks stand behind the frozen ones.
        self.block = nn.ModuleList(T5Block(config, layer_idx=layers + index) for index in range(layers))
        self.block.apply(T5Stack(config)._init_weights)
        self.norm = cast(Any, T5LayerNorm)(width, eps=config.layer_norm_epsilon)
        self._forget()

    def attach(self, stack: T5Stack) -> None:
        """Follow the stack's blocks. Hooks are methods here: a copy of the model then has its own."""
        stack.block[0].register_forward_pre_hook(self._start)
        for index, block in enumerate(stack.block):
            block.register_forward_hook(partial(self._step, index), with_kwargs=True)

    def _forget(self) -> None:
        self._state: Tensor | None = None  # s_i of the forward that is under way
        self._memory: Tensor | None = None  # the encoder's s, in the decoder

    def __getstate__(self) -> dict[str, Any]:
        """A copy does not go on with a forward, such as one that failed half-way."""
        return {**self.__dict__, "_state": None, "_memory": None}

    def _start(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """s_0 takes the gradients of the stack's input; the frozen blocks run without."""
        self._state = self.enter(args[0].to(self.enter.weight.dtype))
        return (args[0].detach(), *args[1:])

    def _step(
        self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]
    ) -> None:
        """s_i from s_{i-1} and what the frozen block gave."""
        hidden, position_bias, cross_bias = output
        down, mu = self.down[index], torch.sigmoid(self.alpha[index] / TEMPERATURE)
        state = mu * down(hidden.to(self.enter.weight.dtype)) + (1 - mu) * cast(Tensor, self._state)
        call = BLOCK_CALL.bind(block, *args, **kwargs)  # the frozen block's, whose masks and cache are ours too
        call.arguments |= {
            "hidden_states": state,
            "attention_mask": _as(state, call.arguments.get("attention_mask")),
            "position_bias": _as(state, position_bias),
            "encoder_hidden_states": self._memory,
            "encoder_attention_mask": _as(state, call.arguments.get("encoder_attention_mask")),
            "encoder_decoder_position_bias": _as(state, cross_bias),
        }
        _make_room(call.arguments.get("past_key_values"), 2 * len(self.block))
        self._state = self.block[index](*call.args[1:], **call.kwargs)[0]

    def _finish(self) -> Tensor:
        """The normed last s; nothing is kept for the next forward."""
        state: Tensor = self.norm(self._state)
        self._forget()
        return state


class EncoderSide(Side):
    """Hands its last state on behind the frozen one, so that both reach the decoder: [B S H + w]."""

    def attach(self, stack: T5Stack) -> None:
        """Follow the stack's blocks and its last norm."""
        super().attach(stack)
        stack.final_layer_norm.register_forward_hook(self._hand_on)

    def _hand_on(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.cat([output, self._finish()], dim=-1)


class DecoderSide(Side):
    """Attends to the encoder's side network, and adds its last state to the frozen one."""

    def __init__(self, stack: T5Stack, *, width: int) -> None:
        super().__init__(stack, width=width)
        self.up = nn.Linear(width, stack.config.d_model)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def attach(self, stack: T5Stack) -> None:
        """Follow the stack's blocks and its last norm, and part the encoder's states before."""
        stack.register_forward_pre_hook(self._part, with_kwargs=True)
        super().attach(stack)
        stack.final_layer_norm.register_forward_hook(self._add)

    def _part(
        self, stack: T5Stack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Both are expanded for beams in one tensor, by the library."""
        states: Tensor = kwargs["encoder_hidden_states"]
        width = self.up.in_features
        self._memory = states[..., -width:].to(self.up.weight.dtype)
        frozen = states[..., :-width].detach().to(stack.dtype).contiguous()  # once, not in every block
        return args, {**kwargs, "encoder_hidden_states": frozen}

    def _add(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor = self.up(self._finish())
        return output + added.to(output.dtype)


class Ladder(nn.Module):
    """The side networks of both stacks."""

    def __init__(self, model: Any, *, width: int) -> None:  # noqa: ANN401 - T5ForConditionalGeneration
        super().__init__()
        self.encoder = EncoderSide(model.encoder, width=width)
        self.decoder = DecoderSide(model.decoder, width=width)


def _count(model: Any, width: int) -> int:  # noqa: ANN401
    """The parameters of a side network, built without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Ladder(model, width=width).parameters())


def _side_config(config: T5Config, width: int) -> T5Config:
    """A block of the same heads, each and the feed-forward part narrower by what the width is of H."""
    side = copy.deepcopy(config)
    side.d_model = width
    side.d_kv = max(1, config.d_kv * width // config.d_model)
    side.d_ff = max(1, config.d_ff * width // config.d_model)
    side.num_layers, side.vocab_size = 0, 1  # the blocks are made one by one
    return side


def _as(like: Tensor, bias: Tensor | None) -> Tensor | None:
    """A bias or an additive mask in the side network's precision; a mask of truth values as it is."""
    return bias if bias is None or bias.dtype == torch.bool else bias.to(like.dtype)


def _make_room(cache: EncoderDecoderCache | None, layers: int) -> None:
    """So many layers in a cache that was made for the frozen ones; the library reorders all of them for beams."""
    if cache is not None:
        for part in (cache.self_attention_cache, cache.cross_attention_cache):
            part.layers.extend(cast(Any, DynamicLayer)() for _ in range(layers - len(part.layers)))
