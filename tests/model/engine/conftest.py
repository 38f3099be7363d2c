from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.model.engine.searches import Allowed
from dept_vl.model.families import EncoderDecoder


class Pair(NamedTuple):
    """A T5 in float64, where rounding decides nothing, on the library's and on the lean layers."""

    reference: T5ForConditionalGeneration
    lean: LeanT5

    def generate(
        self, states: Tensor, mask: Tensor, *, max_length: int, num_beams: int = 1, allowed: Allowed | None = None
    ) -> Tensor:
        """The library's answers."""
        options = {"max_length": max_length, "num_beams": num_beams, "allowed": allowed}
        return EncoderDecoder().generate(self.reference, states.clone(), mask, **options)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's norms in the precision of their input; they take the mean square in fp32 even in float64."""

    def forward(norm: T5LayerNorm, hidden: Tensor) -> Tensor:
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        scale = (wide.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        return norm.weight * (wide * scale).to(norm.weight.dtype)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


@pytest.fixture(scope="session")
def make_pair(make_t5: Callable[..., T5ForConditionalGeneration]) -> Callable[..., Pair]:
    """Random pairs; so many times longer are the rows of the head, and that of its end token in addition."""

    @cache
    def make(seed: int, *, gated: bool = True, tied: bool = True, sharpness: float = 1.0, ending: float = 2.5) -> Pair:
        kind = "gated-gelu" if gated else "relu"
        activation = "gelu_new" if gated else "relu"
        t5 = make_t5(
            seed,
            initializer_factor=3.0,
            feed_forward_proj=kind,
            is_gated_act=gated,
            dense_act_fn=activation,
            tie_word_embeddings=tied,
            scale_decoder_outputs=tied,
        ).double()
        t5.lm_head.weight.data *= sharpness
        t5.lm_head.weight.data[1] *= ending
        t5.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
        return Pair(t5, LeanT5(copy.deepcopy(t5)).eval())

    return make
