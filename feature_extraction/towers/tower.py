"""What every backbone is made of, wherever its network comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor, nn

from feature_extraction.errors import UsageError
from feature_extraction.images.preprocessing import WHOLE, Transform


class FeatureMaps(NamedTuple):
    """What a network makes of images."""

    cells: Float[Tensor, "B D rows columns"]
    class_token: Float[Tensor, "B D"] | None = None  # None: the network has none
    is_grid: bool = True  # False: these are visual tokens in no grid, [B D V 1]; the tower knows their boxes


def boxes_of_whole_images(count: int) -> Float32[np.ndarray, "count 4"]:
    """Boxes of visual tokens of which nobody knows the place."""
    return np.full((count, 4), WHOLE, np.float32)


class Tower(NamedTuple):
    """A network, its feature maps as a function of what its transform makes of images, and the transform.

    Where the transform is a ``Preprocessing``, the function takes normalised images [B 3 size size]; else [B …] as the
    transform makes them.
    """

    network: nn.Module
    feature_maps: Callable[[Tensor], FeatureMaps]
    transform: Transform
    boxes: Callable[[int], Float32[np.ndarray, "V 4"]] = boxes_of_whole_images  # of V visual tokens in no grid


def tokens_as_map(patches: Float[Tensor, "B patches D"]) -> Float[Tensor, "B D rows columns"]:
    """Patch tokens in their square.

    Raises:
        UsageError: they fill none.
    """
    batch, count, width = patches.shape
    side = math.isqrt(count)
    if side * side != count:
        raise UsageError(
            f"The backbone gives {count} tokens, which fill no square grid of patches. "
            "Set features.backbone to one with a feature map or a square grid"
        )
    return patches.transpose(1, 2).reshape(batch, width, side, side)
