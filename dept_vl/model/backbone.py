"""The text backbone by name: a language model, its tokenizer, and the digests that tell it from any other."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from dept_vl.settings import BackboneSettings
from dept_vl.types import Frame
from feature_extraction.errors import DamagedError, InputDataError, UsageError
from feature_extraction.weights import weight_digest as digest_of_tensors

EMBEDDED = {"t5-mini": Path(__file__).parents[1] / "backbones" / "t5_mini"}
PROBE = "How many red-ish umbrellas aren't open, 3 or 4? Über <extra_id_0>"  # shows how a tokenizer cuts and normalises
AUTO_CLASSES = {
    "encoder_decoder": AutoModelForSeq2SeqLM,
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModel,
}


class Backbone(NamedTuple):
    """A loaded language model and its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weight_digest: str  # SHA-256 over names, types, shapes and bytes of all weights, as published
    tokenizer_digest: str  # SHA-256 over the vocabulary and the ids of a probe sentence

    @property
    def family(self) -> str:
        """encoder_decoder, decoder or encoder."""
        return family_of(self.model.config)

    @property
    def embeddings(self) -> nn.Module:
        """What turns the text's token ids into the first layer's input, scaled where the model scales it."""
        owner: Any = self.model.get_encoder() if self.family == "encoder_decoder" else self.model
        return cast(nn.Module, owner.get_input_embeddings())

    @property
    def hidden_size(self) -> int:
        """d, the width of the embeddings."""
        return cast(int, cast(Any, self.embeddings).embedding_dim)

    def frame(self, cue: str) -> Frame:
        """What the model wants around texts and targets; of a decoder-only one also the cue that its answer follows.

        Raises:
            UsageError: the tokenizer has no token that ends an answer, or none to pad with.
        """
        before, after = _special_frame(self.tokenizer)
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        generates = self.family != "encoder"
        if (generates and not isinstance(end, int)) or (self.family != "decoder" and not isinstance(pad, int)):
            raise UsageError(
                f"The tokenizer of {self.name!r} has the padding token {self.tokenizer.pad_token!r} and the end token "
                f"{self.tokenizer.eos_token!r}; this backbone needs {'both' if generates else 'the first'}. Take the "
                "backbone's own tokenizer files"
            )
        if self.family == "decoder":
            after = tuple(self.tokenizer(cue, add_special_tokens=False)["input_ids"]) if cue else ()
        # Tokenizers of bytes mark a word's beginning by its space; others put the mark before every text themselves.
        marks_itself = self.tokenizer.convert_ids_to_tokens(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        spaced = self.family == "decoder" and not marks_itself[0].startswith("▁")
        return Frame(
            text_before=before,
            text_after=after,
            target_before=before if self.family == "encoder_decoder" else (),
            target_after=after if end is None else (end,),
            target_prefix=" " if spaced else "",
            pad_id=end if pad is None else pad,
        )


def load_backbone(settings: BackboneSettings, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load an embedded T5, a local folder, a GGUF file, or a Hugging Face id, and convert its weights to ``dtype``.

    Raises:
        InputDataError: there is no such model, or it is of no family that we can prompt.
        DamagedError: its weights or its tokenizer are not whole.
        UsageError: it needs a package that is not installed.
    """
    source = str(EMBEDDED.get(settings.name, settings.name))
    more: dict[str, Any] = {"revision": settings.revision}
    if source.endswith(".gguf"):
        _needs("gguf", f"The text backbone {settings.name} is a GGUF file")
        source, more["gguf_file"] = str(Path(source).parent), Path(source).name
    try:
        config = AutoConfig.from_pretrained(source, **more)
    except (OSError, ValueError) as error:
        raise InputDataError(
            f"No text backbone {settings.name!r}: {str(error).splitlines()[0]} "
            f"Give {', '.join(EMBEDDED)} (embedded), a local folder, or a Hugging Face id such as google-t5/t5-base"
        ) from error
    family = family_of(config)
    if family == "unknown":
        raise InputDataError(
            f"Text backbone {settings.name!r} is of type {config.model_type!r}, which is no language model for text. "
            "Choose one with --backbone, such as t5-mini, google/flan-t5-base, facebook/bart-base, gpt2 or roberta-base"
        )
    changes = {**_dropout(config, settings), **_precision(settings, dtype)}
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bar for a second's work only litters the log
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **more)
        model, report = cast(Any, AUTO_CLASSES[family]).from_pretrained(
            source, output_loading_info=True, **more, **changes
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_whole(settings, str(error).partition("\n")[0].rstrip(".")) from error
    # The library fills in for both: random tensors, and a tokenizer of special tokens only.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise _not_whole(settings, f"{len(missing)} tensors are missing, first {missing[0]}")
    rows = model.get_input_embeddings().num_embeddings
    if not rows / 2 < len(tokenizer) <= rows:
        raise _not_whole(settings, f"{len(tokenizer):,} tokens but {rows:,} embeddings")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # we read states, and checkpoints of encoders mostly come without trained poolers
    if family != "encoder":
        model.generation_config = _plain_generation(model.generation_config, tokenizer)
    return Backbone(
        name=settings.name,
        weight_digest=weight_digest(model),  # before conversion: fp32 and bf16 runs name the same backbone
        tokenizer_digest=tokenizer_digest(tokenizer),
        model=model if settings.quantization != "none" else model.to(dtype),
        tokenizer=tokenizer,
    )


def family_of(config: PreTrainedConfig) -> str:
    """encoder_decoder, decoder or encoder, by what the library can build of the configuration; else unknown."""
    kind = config.model_type
    if config.is_encoder_decoder:
        return "encoder_decoder" if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else "unknown"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "encoder"
    return "decoder" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "unknown"


def weight_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters; one that two layers share counts once."""
    return digest_of_tensors(dict(module.named_parameters()))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary and the ids of a probe sentence."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(repr((entries, tokenizer(PROBE)["input_ids"])).encode()).hexdigest()


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(place for place in range(len(whole)) if whole[place : place + len(plain)] == plain)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def _dropout(config: PreTrainedConfig, settings: BackboneSettings) -> dict[str, float]:
    """The configuration's keys of dropout in its layers, set to the wanted one."""
    if settings.dropout is None:
        return {}
    keys = [key for key in vars(config) if key.endswith(("dropout", "dropout_rate", "_pdrop", "dropout_prob"))]
    return {key: settings.dropout for key in keys if isinstance(getattr(config, key), float | int)}


def _precision(settings: BackboneSettings, dtype: torch.dtype) -> dict[str, Any]:
    """As published, or quantised while loading."""
    if settings.quantization == "none":
        return {"dtype": "auto"}
    _needs("bitsandbytes", f"backbone.quantization={settings.quantization}")
    bits = {"load_in_8bit": settings.quantization == "8bit", "load_in_4bit": settings.quantization == "4bit"}
    config = cast(Any, BitsAndBytesConfig)(**bits, bnb_4bit_compute_dtype=dtype)
    return {"dtype": dtype, "quantization_config": config}


def _plain_generation(published: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Which tokens begin, end and pad; no sampling, no penalties and no shortest length of some published use."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = {"pad_token_id": end if pad is None else pad, "eos_token_id": end}
    start = getattr(published, "decoder_start_token_id", None)
    more = {} if start is None else {"decoder_start_token_id": start}
    return cast(GenerationConfig, cast(Any, GenerationConfig)(**ids, **more))


def _needs(package: str, reason: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{reason}, and the package {package} is not installed. Run: pip install {package}")


def _not_whole(settings: BackboneSettings, fault: str) -> DamagedError:
    return DamagedError(
        f"Text backbone {settings.name!r} is not whole: {fault}. Copy or download it again, with config.json, "
        "model.safetensors and tokenizer.json"
    )
