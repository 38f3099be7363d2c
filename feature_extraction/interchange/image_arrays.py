"""The arrays of one image, as another tool left them and as a store holds them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from feature_extraction.store.layout import MORE_FIELDS

FIELDS = {"boxes": ("float32", ("V", 4)), **MORE_FIELDS}

# Names of VL-T5's HDF5 for what a store calls otherwise. Its boxes are in pixels, next to img_w and img_h.
VL_T5_NAMES = {
    "obj_id": "class_ids",
    "obj_conf": "scores",
    "attr_id": "attribute_ids",
    "attr_conf": "attribute_scores",
}

# Of width and height. Detectors round; VL-T5 refuses boxes that reach further out of the image, too.
BOX_TOLERANCE = 1e-5

Arrays = Mapping[str, np.ndarray]
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Unusable(ValueError):
    """The features of an image that cannot be used, and why."""


class Look(NamedTuple):
    """What is known of an image's features without reading them."""

    tokens: int
    width: int
    dtype: str  # numpy's name
    fields: frozenset[str]  # what else there is, by the names of a store's fields


def attempt(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> _Result:
    """What the function returns, or why an image is unusable: libraries refuse damaged files in many ways.

    Raises:
        Unusable: the function raised an exception.
    """
    try:
        return function(*arguments, **named)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(f"cannot be read ({type(error).__name__}: {error})") from error


def looked(
    function: Callable[_Arguments, Look], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> Look | Unusable:
    """What the function saw, or why the image is unusable."""
    try:
        return attempt(function, *arguments, **named)
    except Unusable as reason:
        return reason


def announced(look: Look | Unusable) -> Look:
    """What was seen of an image that is to be read.

    Raises:
        Unusable: it was found unusable then.
    """
    if isinstance(look, Unusable):
        raise look
    return look


def look_of(shape: Sequence[int], dtype: np.dtype[Any], names: Iterable[str]) -> Look:
    """What the shape and type of the features tell, and the names of what is stored beside them.

    Raises:
        Unusable: these are no features.
    """
    if len(shape) != 2 or 0 in shape or dtype.kind != "f":
        raise Unusable(f"features are {dtype} of shape {tuple(shape)}, expected floating point of shape (V, D)")
    found = set(names)
    fields = {VL_T5_NAMES.get(name, name) for name in found} & FIELDS.keys()
    if {"img_w", "img_h"} <= found:
        fields.add("image_size")
    if "boxes" in fields and found & {"img_w", "img_h", *VL_T5_NAMES} and "image_size" not in fields:
        raise Unusable("boxes are in pixels, but img_w or img_h is missing")
    return Look(shape[0], shape[1], dtype.newbyteorder("=").name, frozenset(fields))


def usable(found: Arrays, look: Look) -> dict[str, np.ndarray]:
    """The arrays of an image by the names, types and units of a store; features keep their type and every bit.

    Raises:
        Unusable: something has another shape or type than the features want, or is not finite.
    """
    features = np.ascontiguousarray(found["features"], dtype=found["features"].dtype.newbyteorder("="))
    if (*features.shape, features.dtype.name) != (look.tokens, look.width, look.dtype):
        raise Unusable(f"features are {features.dtype} {features.shape}, but {look.dtype} {look[:2]} was announced")
    if not np.isfinite(features).all():
        raise Unusable("features hold NaN or infinite numbers")
    named = {VL_T5_NAMES.get(name, name): array for name, array in found.items()}
    in_pixels = {"img_w", "img_h"} <= found.keys()
    if in_pixels:
        named["image_size"] = np.array([_pixels(found, "img_h"), _pixels(found, "img_w")])
    arrays = {name: _field(name, named[name], look.tokens) for name in sorted(look.fields)}
    if "boxes" in arrays:
        boxes = arrays["boxes"]
        if in_pixels:
            boxes = (boxes / arrays["image_size"][[1, 0, 1, 0]]).astype(np.float32)
        if boxes.min() < -BOX_TOLERANCE or boxes.max() > 1 + BOX_TOLERANCE:
            raise Unusable(
                f"boxes reach from {boxes.min():.4g} to {boxes.max():.4g} of the image's width and height, expected 0 "
                "to 1. Are they in pixels of another image size, or without img_w and img_h?"
            )
        arrays["boxes"] = boxes.clip(0, 1)
    return {"features": features, **arrays}


def expected_size(name: str, tokens: int) -> int:
    """How many numbers an image of so many visual tokens can have under this name at most."""
    _, shape = FIELDS.get(VL_T5_NAMES.get(name, name), ("", (1,)))
    return math.prod(tokens if axis == "V" else int(axis) for axis in shape)


def _field(name: str, array: np.ndarray, tokens: int) -> np.ndarray:
    dtype, axes = FIELDS[name]
    shape = tuple(tokens if axis == "V" else int(axis) for axis in axes)
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise Unusable(f"{name} are {array.dtype} {array.shape}, expected {dtype} {shape}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        field = array.astype(dtype)
    if not np.isfinite(field).all():
        raise Unusable(f"{name} hold NaN or infinite numbers")
    if name == "image_size" and field.min() < 1:
        raise Unusable(f"the image size is {field[0]} x {field[1]} pixels (height x width), expected at least 1 x 1")
    return field


def _pixels(found: Arrays, name: str) -> int:
    number = found[name]
    if number.size != 1 or number.dtype.kind not in "iu":
        raise Unusable(f"{name} is {number.dtype} {number.shape}, expected a whole number")
    return int(number.item())
