"""Weights of frozen networks: their files, their digest, and what is said when they do not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from feature_extraction.errors import IncompatibleError, InputDataError


def weight_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_file(given: str, *, setting: str = "features.weights") -> Path:
    """The safetensors file that a setting names, itself or by its folder.

    Raises:
        InputDataError: there is none.
    """
    path = Path(given)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file() or path.suffix != ".safetensors":
        raise InputDataError(
            f"{setting} is {given!r}, but there is no safetensors file {path}. Give a .safetensors file, or a folder "
            "with model.safetensors; pickled files (.bin, .pth) can run code and are not read"
        )
    return path


def weights_of_another_network(
    fault: str, *, network: str, source: str | Path, setting: str = "features.backbone"
) -> IncompatibleError:
    """The failure for weights that do not fit a network, with the beginning of what does not fit."""
    first = " ".join(fault.split())[:500]
    return IncompatibleError(
        f"The weights in {source} do not fit {network}: {first}. "
        f"Give the weights of this network, or name theirs in {setting}"
    )
