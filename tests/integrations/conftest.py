"""Random models of two layers and hidden size 16, of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

install_import_hook(["dept_vl.integrations"], "beartype.beartype")

VOCABULARY = 40
TASK_TYPES = {
    "t5": "SEQ_2_SEQ_LM",
    "bart": "SEQ_2_SEQ_LM",
    "gpt2": "CAUSAL_LM",
    "llama": "CAUSAL_LM",
    "qwen2": "CAUSAL_LM",
    "bert": "SEQ_CLS",
    "roberta": "SEQ_CLS",
    "gpt2_classifier": "SEQ_CLS",
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def _t5() -> PreTrainedModel:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, **sizes, decoder_start_token_id=0, initializer_factor=2.0)
    )


def _bart() -> PreTrainedModel:
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    ids = {**SPECIAL, "decoder_start_token_id": 1, "forced_eos_token_id": 1}
    # Scaled embeddings, as mBART's and Marian's are.
    return BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, **sizes, **heads, **ids, scale_embedding=True, init_std=0.3)
    )


def _gpt2(cls: Any = GPT2LMHeadModel) -> PreTrainedModel:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    return cls(GPT2Config(vocab_size=VOCABULARY, **sizes, **SPECIAL))


def _llama(config: Any = LlamaConfig, cls: Any = LlamaForCausalLM, **changes: int) -> PreTrainedModel:
    return cls(config(vocab_size=VOCABULARY, **LAYERS, **SPECIAL, initializer_range=0.3, **changes))


def _bert(config: Any = BertConfig, cls: Any = BertForSequenceClassification) -> PreTrainedModel:
    return cls(config(vocab_size=VOCABULARY, **LAYERS, **SPECIAL, initializer_range=0.3, max_position_embeddings=64))


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": _t5,
    "bart": _bart,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": lambda: _llama(Qwen2Config, Qwen2ForCausalLM, num_key_value_heads=1),
    "bert": _bert,
    "roberta": lambda: _bert(RobertaConfig, RobertaForSequenceClassification),
    "gpt2_classifier": lambda: _gpt2(GPT2ForSequenceClassification),
}


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """Models by name, equal for equal seeds."""

    def make(kind: str, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        return MAKERS[kind]().eval()

    return make


@pytest.fixture
def move() -> Callable[..., nn.Module]:
    """Changes all that trains, and counts so many rows as trained, as if a training had been."""

    def moved(model: nn.Module, trained: int = 12, seed: int = 1) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
            for name, buffer in model.named_buffers():
                if name.endswith("trained_length"):
                    buffer.fill_(trained)
        return model

    return moved


@pytest.fixture
def make_prompted(
    make_model: Callable[..., PreTrainedModel], move: Callable[..., nn.Module]
) -> Callable[..., nn.Module]:
    """Models with an adapter of DePT and ADePT, fresh or as if trained on texts of 12 tokens."""
    pytest.importorskip("peft")
    from peft import get_peft_model

    from dept_vl.integrations.peft import DeptConfig

    def make(kind: str, *, fresh: bool = False, **options: Any) -> nn.Module:
        chosen = {"prompt_length": 4, "max_text_length": 12, "budget_length": 20, "offset": "both"} | options
        model = get_peft_model(make_model(kind), DeptConfig(**({"task_type": TASK_TYPES[kind]} | chosen)))
        return model if fresh else move(model)

    return make


@pytest.fixture
def texts() -> Callable[..., dict[str, torch.Tensor]]:
    """Two texts of 6 and 4 tokens, with ``left`` and ``right`` columns of padding more than they need."""

    def make(left: int = 0, right: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        rows = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (6, 4)]
        ids = torch.zeros(2, 6 + left + right, dtype=torch.int64)
        for row, text in zip(ids, rows, strict=True):
            start = left + (6 - len(text) if left else 0)
            row[start : start + len(text)] = text
        return {"input_ids": ids, "attention_mask": ids.ne(0).long()}

    return make
