"""A tower of your own: ``features.backbone: my_module:build``.

``build(settings)`` gives a ``torch.nn.Module`` with two methods::

    preprocess(image)   a decoded image, uint8 [height width 3], as an array of one shape and type for all images
    forward(batch)      what preprocess made of B images as visual tokens [B V D] or a feature map [B D rows columns]

A batch of floating-point numbers comes to ``forward`` in ``features.precision``, any other as it is.

The box of a cell of a feature map is its place in the image. Tokens [B V D] have no known places, so that the box of
each is the whole image, unless the module has ``boxes`` [V 4], an attribute or a method without arguments: x0, y0, x1,
y1 as fractions of the image's width and height.

``preprocess`` runs in decoding processes, on a copy of the module without its parameters and without submodules that
have any. The module may be on any device; it is frozen, put into evaluation mode and moved.
"""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from feature_extraction.errors import UsageError
from feature_extraction.images.preprocessing import WHOLE, View
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import FeatureMaps, Tower, boxes_of_whole_images

SIZES = ((24, 40), (40, 24), (9, 9))  # height and width in pixels of the pictures on which preprocess is tried
Preprocess = Callable[[UInt8[np.ndarray, "height width 3"]], object]


@dataclass(frozen=True)
class OwnTransform:
    """The ``preprocess`` of a tower of your own, whose results must all have one shape and type."""

    name: str
    preprocess: Preprocess
    shape: tuple[int, ...]
    dtype: str  # numpy's name
    sample: tuple[float, float]  # of what it makes of a fixed picture: the mean, and a sum that knows the order

    def apply(self, image: UInt8[np.ndarray, "height width 3"]) -> tuple[np.ndarray, View]:
        """What the network takes of an image, all of which it is taken to show.

        Raises:
            UsageError: it has another shape or type than that of other images.
        """
        made = _made(self.name, self.preprocess, image)
        if (made.shape, str(made.dtype)) != (self.shape, self.dtype):
            raise UsageError(
                f"{self.name}: preprocess makes {made.dtype} {made.shape} of an image of {_size(image)} pixels, but "
                f"{self.dtype} {self.shape} of others. Let it give one shape and type for all images"
            )
        return made, WHOLE

    def identity(self) -> dict[str, Any]:
        """The shape and type, and of the values enough to notice another preprocessing."""
        return {"preprocessing": {"shape": list(self.shape), "dtype": self.dtype, "sample": list(self.sample)}}


def own_tower(module: str, function: str, settings: ExtractionSettings) -> Tower:
    """The tower that ``function`` of a module in the current folder, or of an installed one, builds.

    Raises:
        UsageError: there is no such module or function, or what it builds is not as this file's beginning says.
    """
    name = f"{module}:{function}"
    network = _function(module, function)(settings)
    if not isinstance(network, nn.Module):
        raise UsageError(f"{name} gives {_kind(network)}; it must give a torch.nn.Module with preprocess and forward")
    missing = [
        wanted
        for wanted, there in {
            "preprocess": callable(getattr(network, "preprocess", None)),
            "forward": type(network).forward is not nn.Module.forward,
        }.items()
        if not there
    ]
    if missing:
        raise UsageError(
            f"{name} gives {_kind(network)} without the method {' and '.join(missing)}. Write preprocess(image), which "
            "makes an array of an image, and forward(batch), which makes visual tokens of B of them"
        )
    transform = _transform(name, network.cpu(), settings)
    given = getattr(network, "boxes", None)
    given = given() if callable(given) else given
    given = given.detach().numpy() if isinstance(given, Tensor) else given
    # Copied before the network's own may be rounded to its precision.
    own_boxes = None if given is None else np.array(given, np.float32)

    def feature_maps(batch: Tensor) -> FeatureMaps:
        found = network(batch)
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim not in (3, 4):
            raise UsageError(
                f"{name}: forward gives {_kind(found)} for a batch of {len(batch)} images; it must give floating-point "
                "visual tokens [B V D] or a feature map [B D rows columns]"
            )
        if len(found) != len(batch) or 0 in found.shape:
            raise UsageError(
                f"{name}: forward gives {_kind(found)} for a batch of {len(batch)} images; the first axis must be the "
                "images, and no axis may be empty"
            )
        if found.ndim == 4:
            return FeatureMaps(found)
        return FeatureMaps(found.transpose(1, 2).unsqueeze(3), is_grid=False)

    def boxes(count: int) -> Float32[np.ndarray, "count 4"]:
        if own_boxes is None:
            return boxes_of_whole_images(count)
        if own_boxes.shape != (count, 4) or not _are_boxes(own_boxes):
            raise UsageError(
                f"{name}: boxes is {_kind(own_boxes)} for {count} visual tokens; it must be [{count} 4], for each of "
                "them x0 <= x1 and y0 <= y1 as fractions from 0 to 1"
            )
        return own_boxes

    return Tower(network, feature_maps, transform, boxes)


def _function(module: str, function: str) -> Callable[[ExtractionSettings], object]:
    if not {"", os.getcwd()} & set(sys.path):  # as python -m does; stays, for the decoding processes
        sys.path.insert(0, os.getcwd())
    try:
        found = import_module(module)
    except ImportError as error:
        raise UsageError(
            f"features.backbone is {module}:{function}, but the module {module} can be imported neither from the "
            f"current folder {os.getcwd()} nor from the installed packages: {error}. Run the command in the folder of "
            f"{module}.py, or install it"
        ) from error
    build: Any = getattr(found, function, None)
    if not callable(build):
        raise UsageError(
            f"features.backbone is {module}:{function}, but {found.__file__} has no function {function!r}. Write "
            f"{function}(settings), which gives a torch.nn.Module with preprocess and forward"
        )
    return build  # type: ignore[no-any-return]


def _transform(name: str, network: nn.Module, settings: ExtractionSettings) -> OwnTransform:
    preprocess = _without_weights(network).preprocess
    first = _made(name, preprocess, _pictures()[0])
    values = first.astype(np.float64).ravel()
    wave = values @ np.sin(np.arange(len(values)))
    # Rounded, since other machines may compute other last digits.
    sample = float(f"{values.mean():.3g}"), float(f"{wave:.3g}")
    transform = OwnTransform(name, preprocess, first.shape, str(first.dtype), sample)
    for picture in _pictures():
        transform.apply(picture)
    if settings.workers > 0:
        try:
            pickle.dumps(transform)
        except Exception as error:  # pickle and the objects themselves raise all sorts
            raise UsageError(
                f"{name}: preprocess cannot be sent to the decoding processes: {error}. Let it use only what pickle "
                "can store, no lambdas and open files for example, or set features.workers to 0"
            ) from error
    return transform


def _without_weights(network: nn.Module) -> Any:  # noqa: ANN401 - has whatever attributes the user gave it
    """A copy of a module that is light enough to be sent around."""
    light = copy.copy(network)
    parts = {name: part for name, part in network.named_children() if not any(True for _ in part.parameters())}
    vars(light).update(_parameters={}, _buffers=dict(network._buffers), _modules=parts)
    return light


def _pictures() -> list[UInt8[np.ndarray, "height width 3"]]:
    """Small fixed pictures of different shapes."""
    random = np.random.default_rng(0)
    return [random.integers(0, 200, (*size, 3), np.uint8) + np.array([0, 25, 50], np.uint8) for size in SIZES]


def _made(name: str, preprocess: Preprocess, image: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
    """What ``preprocess`` makes of an image, as an array of numbers that torch knows."""
    try:
        made = preprocess(image)
    except AttributeError as error:
        raise UsageError(
            f"{name}: preprocess failed with AttributeError: {error}. It runs in decoding processes, without the "
            "module's parameters and the submodules that have any: let it use neither"
        ) from error
    made = made.numpy() if isinstance(made, Tensor) else made
    if not isinstance(made, np.ndarray) or made.ndim == 0 or made.dtype.kind not in "buif":
        raise UsageError(f"{name}: preprocess gives {_kind(made)}; it must give an array of numbers")
    return made


def _are_boxes(boxes: Float32[np.ndarray, "V 4"]) -> bool:
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all()
    return bool(ordered and (boxes >= 0).all() and (boxes <= 1).all())


def _kind(value: object) -> str:
    """What something is, for the user."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _size(image: UInt8[np.ndarray, "height width 3"]) -> str:
    height, width, _ = image.shape
    return f"{width} x {height}"
