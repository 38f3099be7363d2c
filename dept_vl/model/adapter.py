"""The adapter folder: what was trained, and what it was trained on top of.

``adapter_model.safetensors`` holds the trained tensors, ``adapter_config.json`` the identities that must match when
they are loaded, the settings and digests, and ``README.md`` says the same to a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from dept_vl.model.backbone import Backbone
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.trainable import ParameterGroup
from dept_vl.model.vl_t5 import VLT5
from feature_extraction.differences import refuse_differences
from feature_extraction.durable import sha256_of_file, write_durably
from feature_extraction.errors import DamagedError, InputDataError
from feature_extraction.store.layout import seal, unseal

FORMAT = 1
CONFIG_NAME, TENSORS_NAME, CARD_NAME = "adapter_config.json", "adapter_model.safetensors", "README.md"


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
        "backbone.weight_digest": backbone.weight_digest,
        "backbone.tokenizer_digest": backbone.tokenizer_digest,
        "backbone.hidden_size": backbone.t5.config.d_model,
        **{f"features.{key}": value for key, value in features.items()},
    }


def trained_tensors(model: VLT5, groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
    """Copies of all trained tensors on the CPU, and DePT's count of trained rows."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _live_tensors(model, groups).items()}


@torch.no_grad()
def restore_tensors(model: VLT5, groups: Sequence[ParameterGroup], tensors: Mapping[str, Tensor], source: Path) -> None:
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
    digest = write_durably(folder / TENSORS_NAME, save(adapter.tensors))
    # By name: tensors that were read from a checkpoint come in any order.
    shapes = {name: list(tensor.shape) for name, tensor in sorted(adapter.tensors.items())}
    record = {"identity": adapter.identity, "settings": adapter.settings, "shapes": shapes, "sha256": digest}
    record["answers"] = dict(adapter.answers)
    write_durably(folder / CARD_NAME, _card(adapter).encode())
    write_durably(folder / CONFIG_NAME, seal(record, indent=1))


def load_adapter(folder: Path, *, expected_identity: Mapping[str, Any] | None = None) -> Adapter:
    """Read an adapter and check it.

    Args:
        expected_identity: of the model it will be used with; None where the adapter says what to build.

    Raises:
        InputDataError: there is no adapter in the folder.
        DamagedError: a file is not what was written.
        IncompatibleError: the adapter belongs to another task, backbone, tokenizer or feature store.
    """
    try:
        record = unseal((folder / CONFIG_NAME).read_bytes())
    except FileNotFoundError:
        raise InputDataError(
            f"No adapter in {folder}: {CONFIG_NAME} is missing. Give the folder that training wrote, RUN/adapter"
        ) from None
    if record is None:
        raise DamagedError(f"{folder / CONFIG_NAME} does not fit its own digest. Take it again from the run")
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


def _live_tensors(model: VLT5, groups: Sequence[ParameterGroup]) -> dict[str, Tensor]:
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
