"""Decoded images as what the networks see of them. Runs in decoding processes; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from feature_extraction.images.decoding import DEFAULT_DECODING, Decoding, ImageFile, decode_image
from feature_extraction.images.preprocessing import Transform


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the networks see of B images."""

    pixels: Shaped[np.ndarray, "B ..."]  # for the backbone, as its transform makes them
    views: Float32[np.ndarray, "B 4"]  # which part of the image they show; see preprocessing.View
    sizes: Int64[np.ndarray, "B 2"]  # height and width of the whole image in pixels, upright
    region_pixels: Shaped[np.ndarray, "B ..."] | None = None  # for the detector, where there is one
    region_views: Float32[np.ndarray, "B 4"] | None = None

    def part(self, rows: slice) -> Inputs:
        """Some of the images."""
        chosen: dict[str, Any] = {name: None if array is None else array[rows] for name, array in self.arrays().items()}
        return Inputs(**chosen)

    def arrays(self) -> dict[str, Any]:
        """The arrays by name; None where there is no detector."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def joined(cls, parts: Sequence[Inputs]) -> Inputs:
        """The images of several inputs, one after the other."""
        every = [part.arrays() for part in parts]
        columns: dict[str, Any] = {name: [arrays[name] for arrays in every] for name in every[0]}
        joined: dict[str, Any] = {
            name: None if column[0] is None else np.concatenate(column) for name, column in columns.items()
        }
        return cls(**joined)


class Preparation(NamedTuple):
    """The way from an image file to the inputs of backbone and detector."""

    backbone: Transform
    detector: Transform | None = None
    rules: Decoding = DEFAULT_DECODING

    def of_file(self, image: ImageFile | Path) -> Inputs:
        """The inputs of one image file (B = 1).

        Raises:
            ImageRejected: the image cannot be used.
        """
        return self.of_image(decode_image(image, self.rules))

    def of_image(self, image: UInt8[np.ndarray, "height width 3"]) -> Inputs:
        """The inputs of one decoded image (B = 1)."""
        pixels, view = self.backbone.apply(image)
        size = np.array([image.shape[:2]], dtype=np.int64)
        inputs = Inputs(pixels[None], np.array([view], dtype=np.float32), size)
        if self.detector is None:
            return inputs
        region_pixels, region_view = self.detector.apply(image)
        views = np.array([region_view], dtype=np.float32)
        return replace(inputs, region_pixels=region_pixels[None], region_views=views)
