from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from feature_extraction.errors import IncompatibleError, InputDataError
from feature_extraction.weights import weight_digest, weights_file, weights_of_another_network

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}


def test_equal_weights_have_equal_digests_in_any_order_and_layout() -> None:
    turned = {"b": torch.tensor(1), "a": torch.arange(6.0).view(2, 3).T.contiguous().T}
    assert weight_digest(turned) == weight_digest(WEIGHTS)


def test_a_name_a_type_a_shape_or_a_value_makes_another_digest() -> None:
    others = [
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
        {**WEIGHTS, "b": torch.tensor(1, dtype=torch.int32)},
        {**WEIGHTS, "a": WEIGHTS["a"].view(3, 2)},
        {**WEIGHTS, "a": WEIGHTS["a"] + torch.tensor(2**-20)},
    ]
    assert len({weight_digest(weights) for weights in [WEIGHTS, *others]}) == 5


def test_weights_are_a_safetensors_file_or_a_folder_with_one(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert weights_file(str(file)) == file
    assert weights_file(str(tmp_path)) == file


@pytest.mark.parametrize("name", ["weights.pth", "missing.safetensors"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.pth").touch()
    given = str(tmp_path / name)
    expected = (
        f"features.region_weights is {given!r}, but there is no safetensors file {given}. Give a .safetensors file, or "
        "a folder with model.safetensors; pickled files (.bin, .pth) can run code and are not read"
    )
    with pytest.raises(InputDataError, match=f"^{re.escape(expected)}$"):
        weights_file(given, setting="features.region_weights")


def test_weights_of_another_network_are_told_with_the_beginning_of_what_does_not_fit() -> None:
    error = weights_of_another_network("missing\n  a " + "b" * 1000, network="hf/x", source="w.safetensors")
    assert isinstance(error, IncompatibleError)
    assert str(error) == (
        f"The weights in w.safetensors do not fit hf/x: missing a {'b' * 490}. Give the weights of this network, or "
        "name theirs in features.backbone"
    )
