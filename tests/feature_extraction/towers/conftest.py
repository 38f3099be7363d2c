"""Pictures, and what a backbone should be shown of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

Pictures = list[np.ndarray[Any, Any]]


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Five random pictures, each a row higher than the last."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (20 + row, 30, 3), dtype=np.uint8) for row in range(5)]


@pytest.fixture(scope="session")
def shown() -> Callable[..., torch.Tensor]:
    """Pixels of a picture as a backbone should get them, in the plainest form."""

    def show(picture: np.ndarray[Any, Any], size: int, mean: Any, std: Any) -> torch.Tensor:
        pixels = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)) / 255
        return torch.tensor((pixels - np.array(mean)) / np.array(std), dtype=torch.float32).permute(2, 0, 1)[None]

    return show


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[torch.nn.Module], str]:
    """Writes the weights of a network where features.weights can name them."""

    def save(network: torch.nn.Module) -> str:
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        return str(tmp_path)

    return save
