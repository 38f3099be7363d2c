"""An image of any shape as a square of pixels, and which part of the image the square shows. Imports no torch."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

RESIZES = ("squash", "crop", "pad")


class View(NamedTuple):
    """The part of an image that a square shows, as fractions of the image's width and height.

    What lies outside 0 to 1 is border.
    """

    x0: float
    y0: float
    x1: float
    y1: float


WHOLE = View(0.0, 0.0, 1.0, 1.0)


@runtime_checkable
class Transform(Protocol):
    """What turns a decoded image into the input of a network, always of one shape and type; runs in workers."""

    def apply(self, image: UInt8[np.ndarray, "height width 3"]) -> tuple[np.ndarray, View]:
        """The network's input, and the part of the image that it shows."""

    def identity(self) -> dict[str, Any]:
        """What the result depends on, as JSON values."""


class Preprocessing(NamedTuple):
    """How a network wants its pixels: a square, then ``(pixel / 255 - mean) / std`` per channel on the device."""

    image_size: int  # pixels
    interpolation: str  # the name of a filter of Pillow: bicubic, bilinear, lanczos, …
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "squash"  # one of RESIZES

    def apply(self, image: UInt8[np.ndarray, "height width 3"]) -> tuple[UInt8[np.ndarray, "size size 3"], View]:
        """The image as a square.

        ``squash`` does not keep the aspect ratio, ``crop`` shows the central square, ``pad`` the whole image in the
        upper left corner with a border of the mean colour to the right or below.
        """
        whole = Image.fromarray(image)
        filter_ = Image.Resampling[self.interpolation.upper()]
        size, (width, height) = self.image_size, whole.size
        if self.resize == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            # As if the whole were resized and then cut: at the edges the filter sees what lies just outside.
            view = View(left / width, top / height, (left + side) / width, (top + side) / height)
            return np.array(whole.resize((size, size), filter_, box=box)), view
        if self.resize == "pad":
            longest = max(width, height)
            inner = max(1, round(size * width / longest)), max(1, round(size * height / longest))
            square = np.empty((size, size, 3), dtype=np.uint8)
            square[:] = np.round(np.array(self.mean) * 255)  # zero after normalisation
            square[: inner[1], : inner[0]] = np.array(whole.resize(inner, filter_))
            return square, View(0.0, 0.0, size / inner[0], size / inner[1])
        return np.array(whole.resize((size, size), filter_)), WHOLE

    def identity(self) -> dict[str, Any]:
        """What the square and its normalisation depend on."""
        return {
            "image_size": self.image_size,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def boxes_in_image(
    boxes: Float32[np.ndarray, "*n 4"], view: Float32[np.ndarray, "#*n 4"]
) -> tuple[Float32[np.ndarray, "*n 4"], Bool[np.ndarray, "*n"]]:
    """Boxes on a square as boxes in the image, cut at its edges, and whether anything of them lies in the image."""
    origin, size = view[..., :2], view[..., 2:] - view[..., :2]
    scaled = (boxes.reshape(*boxes.shape[:-1], 2, 2) * size[..., None, :] + origin[..., None, :]).reshape(boxes.shape)
    cut = np.clip(scaled, 0, 1).astype(np.float32)
    return cut, (cut[..., 2] > cut[..., 0]) & (cut[..., 3] > cut[..., 1])


def boxes_on_square(
    boxes: Float32[np.ndarray, "*n 4"], view: Float32[np.ndarray, "#*n 4"]
) -> Float32[np.ndarray, "*n 4"]:
    """Boxes in an image as boxes on the square that shows ``view`` of it, cut at the square's edges."""
    origin, size = view[..., :2], view[..., 2:] - view[..., :2]
    moved = (boxes.reshape(*boxes.shape[:-1], 2, 2) - origin[..., None, :]) / size[..., None, :]
    cut: Float32[np.ndarray, "*n 4"] = np.clip(moved.reshape(boxes.shape), 0, 1).astype(np.float32)
    return cut
