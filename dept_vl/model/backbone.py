"""The text backbone by name: a T5, its tokenizer, and the digests that tell it from any other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.utils import logging

from dept_vl.settings import BackboneSettings
from feature_extraction.errors import DamagedError, InputDataError
from feature_extraction.weights import weight_digest as digest_of_tensors

EMBEDDED = {"t5-mini": Path(__file__).parents[1] / "backbones" / "t5_mini"}
PROBE = "How many red-ish umbrellas aren't open, 3 or 4? Über <extra_id_0>"  # shows how a tokenizer cuts and normalises


class Backbone(NamedTuple):
    """A loaded T5 and its tokenizer."""

    name: str
    t5: T5ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    weight_digest: str  # SHA-256 over names, types, shapes and bytes of all weights, as published
    tokenizer_digest: str  # SHA-256 over the vocabulary and the ids of a probe sentence


def load_backbone(settings: BackboneSettings, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load an embedded T5, a local folder, or a Hugging Face id, and convert its weights to ``dtype``.

    Raises:
        InputDataError: there is no such model, or it is not a T5.
        DamagedError: its weights or its tokenizer are not whole.
    """
    source = str(EMBEDDED.get(settings.name, settings.name))
    try:
        model_type = AutoConfig.from_pretrained(source, revision=settings.revision).model_type
    except (OSError, ValueError) as error:
        raise InputDataError(
            f"No text backbone {settings.name!r}: {str(error).splitlines()[0]} "
            f"Give {', '.join(EMBEDDED)} (embedded), a local folder, or a Hugging Face id such as google-t5/t5-base"
        ) from error
    if model_type != "t5":
        raise InputDataError(
            f"Text backbone {settings.name!r} is of type {model_type!r}; a T5 (v1.0, v1.1 or Flan) is needed. "
            "Choose one with --backbone, such as t5-mini or google/flan-t5-base"
        )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bar for a second's work only litters the log
    changes = {} if settings.dropout is None else {"dropout_rate": settings.dropout}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=settings.revision)
        t5, report = cast(Any, T5ForConditionalGeneration).from_pretrained(
            source, revision=settings.revision, dtype="auto", output_loading_info=True, **changes
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_whole(settings, str(error).partition("\n")[0].rstrip(".")) from error
    # The library fills in for both: random tensors, and a tokenizer of special tokens only.
    missing = sorted(report["missing_keys"])
    if missing:
        raise _not_whole(settings, f"{len(missing)} tensors are missing, first {missing[0]}")
    if not t5.config.vocab_size / 2 < len(tokenizer) <= t5.config.vocab_size:
        raise _not_whole(settings, f"{len(tokenizer):,} tokens but {t5.config.vocab_size:,} embeddings")
    return Backbone(
        name=settings.name,
        weight_digest=weight_digest(t5),  # before conversion: fp32 and bf16 runs name the same backbone
        tokenizer_digest=tokenizer_digest(tokenizer),
        t5=t5.to(dtype),
        tokenizer=tokenizer,
    )


def weight_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters; one that two layers share counts once."""
    return digest_of_tensors(dict(module.named_parameters()))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary and the ids of a probe sentence."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(repr((entries, tokenizer(PROBE)["input_ids"])).encode()).hexdigest()


def _not_whole(settings: BackboneSettings, fault: str) -> DamagedError:
    return DamagedError(
        f"Text backbone {settings.name!r} is not whole: {fault}. Copy or download it again, with config.json, "
        "model.safetensors and tokenizer.json"
    )
