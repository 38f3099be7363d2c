"""The adapter folder: what was trained, and what it was trained on top of.

``adapter_model.safetensors`` holds the trained tensors, ``adapter_config.json`` the identities that must match when
they are loaded, the settings and digests, and ``README.md`` says the same to a person. Names and keys are those of the
PEFT library, whose ``save_pretrained`` writes the same folder (dept_vl.integrations.peft); our own record stands in
``adapter_config.json`` under the key ``dept_vl``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from dept_vl.model.backbone import EMBEDDED, Backbone
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import ParameterGroup
from dept_vl.settings import MethodSettings
from feature_extraction.differences import refuse_differences
from feature_extraction.durable import sha256_of_file, write_durably
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError
from feature_extraction.store.layout import seal, unseal

FORMAT = 2
CONFIG_NAME, TENSORS_NAME, CARD_NAME = "adapter_config.json", "adapter_model.safetensors", "README.md"
RECORD, PEFT_TYPE = "dept_vl", "DEPT"  # in adapter_config.json: the key of our record; the value of peft_type
TASK_TYPES = {"encoder_decoder": "SEQ_2_SEQ_LM", "decoder": "CAUSAL_LM", "encoder": "SEQ_CLS"}  # PEFT's, by family
# What a prompt for any Hugging Face model consists of; the model of dept_vl may have more.
PROMPT_TENSORS = {f"prompt.{name}" for name in ("prompt", "a", "b", "trained_length", "w1", "b1", "w2", "b2")}


class Adapter(NamedTuple):
    """A saved adapter."""

    identity: dict[str, Any]  # flat: what must match when the adapter is used
    settings: dict[str, Any]  # the resolved settings of the run that trained it
    tensors: dict[str, Tensor]
    answers: Mapping[str, list[str]] = MappingProxyType(
        {}
    )  # for each task with an answer vocabulary, its answers in their order


def adapter_identity(backbone: Backbone, *, task: str, method: str, features: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter is tied to: format, task, method, text backbone, tokenizer, and the features' identity."""
    return {
        "format": FORMAT,
        "task": task,
        "method": method,
        "backbone.name": backbone.name,
        "backbone.family": backbone.family,
        "backbone.dtype": dtype_name(getattr(backbone.model.config, "dtype", None) or backbone.model.dtype),
        "backbone.weight_digest": backbone.weight_digest,
        "backbone.tokenizer_digest": backbone.tokenizer_digest,
        "backbone.hidden_size": backbone.hidden_size,
        **{f"features.{key}": value for key, value in features.items()},
    }


def trained_tensors(model: PromptedModel, groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
    """Copies of all trained tensors on the CPU, and DePT's count of trained rows."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _live_tensors(model, groups).items()}


@torch.no_grad()
def restore_tensors(
    model: PromptedModel, groups: Sequence[ParameterGroup], tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Put trained tensors into the model.

    Raises:
        IncompatibleError: names or shapes differ; nothing is changed then.
    """
    targets = _live_tensors(model, groups)
    refuse_differences(
        {name: tuple(value.shape) for name, value in targets.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
        what=f"The tensors of {source} do not fit this model",
        advice="Use the settings of the run that trained them",
    )
    for name, target in targets.items():
        target.copy_(tensors[name])


def save_adapter(folder: Path, adapter: Adapter) -> None:
    """Write the three files; the configuration comes last, since it makes the folder an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / TENSORS_NAME, save(adapter.tensors))
    record = record_of(folder / TENSORS_NAME, adapter.identity, adapter.settings, adapter.answers)
    write_durably(folder / CARD_NAME, _card(adapter).encode())
    config = {**_peft_keys(adapter), RECORD: record}
    write_durably(folder / CONFIG_NAME, json.dumps(config, indent=1).encode() + b"\n")


def record_of(
    tensors: Path, identity: Mapping[str, Any], settings: Mapping[str, Any], answers: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What adapter_config.json says under the key dept_vl, with a digest of itself; ``tensors`` is their file."""
    with safe_open(tensors, framework="pt") as file:
        # By name: tensors that were read from a checkpoint come in any order.
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    record = {"identity": dict(identity), "settings": dict(settings), "shapes": shapes, "answers": dict(answers)}
    sealed: dict[str, Any] = json.loads(seal({**record, "sha256": sha256_of_file(tensors)}))
    return sealed


def load_adapter(folder: Path, *, expected_identity: Mapping[str, Any] | None = None) -> Adapter:
    """Read an adapter, of our training or of PEFT's save_pretrained, and check it.

    PEFT knows neither task nor tokenizer: fields of the identity that only we write are then None, and settings have
    the section ``method`` alone.

    Args:
        expected_identity: of the model it will be used with; None where the adapter says what to build.

    Raises:
        InputDataError: there is no adapter in the folder, or it is that of another method.
        DamagedError: a file is not what was written.
        IncompatibleError: the adapter belongs to another task, backbone, tokenizer or feature store, or is of an older
            format.
    """
    try:
        text = (folder / CONFIG_NAME).read_bytes()
    except FileNotFoundError:
        raise InputDataError(
            f"No adapter in {folder}: {CONFIG_NAME} is missing. Give the folder that training wrote, RUN/adapter"
        ) from None
    record = _record(folder / CONFIG_NAME, text)
    identity = record["identity"]
    if expected_identity is not None:
        refuse_differences(
            dict(expected_identity),
            identity,
            what=f"The adapter in {folder} was trained for something else",
            advice="Choose the adapter's own backbone and features, or train a new adapter",
        )
    path = folder / TENSORS_NAME
    got_digest = sha256_of_file(path) if path.is_file() else "no file"
    if got_digest != record["sha256"]:
        raise DamagedError(f"{path}: SHA-256 expected {record['sha256']}, got {got_digest}. Take it again from the run")
    return Adapter(identity, record["settings"], load(path.read_bytes()), record["answers"])


def foreign_tensors(shapes: Iterable[str]) -> list[str]:
    """The tensors of an adapter that only dept_vl's own model has a place for: visual parts, heads, several prompts."""
    return sorted(name for name in shapes if name not in PROMPT_TENSORS and not name.startswith("base_model."))


def dtype_name(dtype: torch.dtype | str) -> str:
    """A type of numbers as in bfloat16."""
    return str(dtype).removeprefix("torch.")


def _record(path: Path, text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    method = config.get("peft_type", PEFT_TYPE) if isinstance(config, dict) else PEFT_TYPE
    if method != PEFT_TYPE:
        raise InputDataError(f"{path} is an adapter of the method {method}. Give one of dept_vl, whose is {PEFT_TYPE}")
    sealed = config.get(RECORD) if isinstance(config, dict) else None
    if sealed is None and isinstance(config, dict) and "identity" in config:
        raise IncompatibleError(
            f"{path} was written by an older version of dept_vl, in format 1; this one reads format {FORMAT}. "
            "Use that version, or train again"
        )
    record = unseal(json.dumps(sealed).encode() + b"\n")
    if record is None:
        raise DamagedError(f"{path} does not fit its own digest. Take it again from the run")
    return record


def _peft_keys(adapter: Adapter) -> dict[str, Any]:
    """What PEFT reads in adapter_config.json: fields of its DeptConfig."""
    identity, sizes = adapter.identity, {name: len(tensor) for name, tensor in adapter.tensors.items() if tensor.dim()}
    keys = {
        "peft_type": PEFT_TYPE,
        "task_type": TASK_TYPES.get(identity.get("backbone.family", "")),
        "base_model_name_or_path": None if identity["backbone.name"] in EMBEDDED else identity["backbone.name"],
        "inference_mode": True,
    }
    if foreign_tensors(sizes):
        return keys  # enough to be recognised, and refused, by name
    method = asdict(MethodSettings()) | adapter.settings.get("method", {})
    by_position, by_token = "prompt.b" in sizes, "prompt.b1" in sizes
    return {
        **keys,
        "offset": {(1, 1): "both", (1, 0): "position", (0, 1): "token"}.get((by_position, by_token), "none"),
        "prompt_length": sizes.get("prompt.prompt", 0),
        "rank": sizes.get("prompt.b") or sizes.get("prompt.b1") or 0,
        "max_text_length": sizes.get("prompt.a", 0),
        "budget_length": None,  # the sizes stand; whether they keep a budget was asked before the training
        "scale": method["low_rank_scale"],
        "token_dropout": method["token_dropout"],
    }


def _live_tensors(model: PromptedModel, groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
    """What an adapter consists of, as it lies in the model."""
    tensors: dict[str, Tensor] = {name: value for group in groups for name, value in group.parameters.items()}
    for name, prompt in model.encoder.prompts().items():
        if isinstance(prompt, DecomposedPrompt):
            tensors[f"{name}.trained_length"] = prompt.trained_length
    return tensors


def _card(adapter: Adapter) -> str:
    identity = adapter.identity
    belongs = "\n".join(f"| {key} | {value} |" for key, value in identity.items())
    tensors = "\n".join(
        f"| {name} | {' x '.join(map(str, tensor.shape)) or 'scalar'} |"
        for name, tensor in sorted(adapter.tensors.items())
    )
    return (
        f"# {identity['method']} adapter for {identity['task']} on {identity['backbone.name']}\n\n"
        "Trained with dept_vl; it works only on the backbone and the features named here.\n\n"
        f"| belongs to | |\n|---|---|\n{belongs}\n\n| tensor | shape |\n|---|---|\n{tensors}\n"
    )
