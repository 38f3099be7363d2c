from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from dept_vl.model.backbone import AUTO_CLASSES, Backbone, family_of

IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
PARTS = {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}
COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
SIZES: dict[str, dict[str, Any]] = {
    **{key: {"d_model": 16, "decoder_start_token_id": 1, **PARTS} for key in ("bart", "mbart")},
    "mt5": {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    **{key: {**COMMON, "num_key_value_heads": 2, "head_dim": 4} for key in ("llama", "mistral", "qwen2", "qwen3")},
    **dict.fromkeys(("olmo", "bert", "roberta", "xlm-roberta"), COMMON),
}


@pytest.fixture
def tiny(make_t5: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Callable[..., Backbone]:
    """Backbones of any type with two layers in each stack, and hidden size 16; equal for equal arguments."""

    def make(kind: str, dtype: torch.dtype = torch.float32) -> Backbone:
        torch.manual_seed(3)
        if kind == "t5":
            model = make_t5()
        else:
            config = AutoConfig.for_model(kind, vocab_size=29, **SIZES[kind], **IDS)
            model = AUTO_CLASSES[family_of(config)].from_config(config).eval()
            with torch.no_grad():  # random models of the libraries' scale attend to nothing in particular
                for name, parameter in model.named_parameters():
                    if parameter.ndim > 1 and "embed" not in name:
                        parameter.mul_(8)
        start = {"decoder_start_token_id": 0 if kind == "t5" else 1} if model.config.is_encoder_decoder else {}
        model.generation_config = GenerationConfig(**IDS, **start)
        return Backbone(kind, model.to(dtype), tokenizer, "", "")

    return make


@pytest.fixture(scope="session")
def meta_t5_base(tokenizer: PreTrainedTokenizerFast) -> Callable[[], Backbone]:
    """T5-base by its shapes alone."""

    def make() -> Backbone:
        config = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
        with torch.device("meta"):
            model = T5ForConditionalGeneration(config)
        return Backbone("t5-base", model, tokenizer, "", "")

    return make
