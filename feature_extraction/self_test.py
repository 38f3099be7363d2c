"""Whether a backbone keeps the promises of a store, found out in four small batches before a long run."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8

from feature_extraction.backbones import Backbone
from feature_extraction.errors import UsageError
from feature_extraction.images.inputs import Inputs
from feature_extraction.store.layout import StoredImages

SIZES = ((32, 48), (48, 16), (24, 24))  # height and width in pixels: wide, tall and square pictures
MOST = 8  # pictures: small batches tell as much as large ones, in an eighth of the time

# What an image's features may differ by at another place in a batch, as a share of the largest feature: a kernel may
# round otherwise there. Two units in the last place of a store's float16, or eight of the arithmetic's own, since
# differences grow from layer to layer. A network that mixes the images of a batch differs by far more.
TOLERANCES = {"fp32": 2**-9, "bf16": 2**-4, "fp16": 2**-7}


def self_test(backbone: Backbone) -> None:
    """Encode a few pictures together, again, one alone and in another order; regions are left aside.

    Raises:
        UsageError: the backbone fails; names the test, the largest difference and what to do.
    """
    settings, tolerance = backbone.settings, TOLERANCES[backbone.settings.precision]
    # What is compiled would be compiled again for another size, which takes longer than large batches.
    backbone = backbone.for_trial(settings.batch_size if settings.compile else min(settings.batch_size, MOST))
    count = min(settings.batch_size, MOST)
    inputs = Inputs.joined([backbone.preparation.of_image(picture) for picture in _pictures(count)])
    found = _encoded(backbone, inputs)
    features = found["features"]
    _check_shape(backbone, found, count)
    _check_finite(backbone, features)
    _check_boxes(backbone, found["boxes"])

    again = _encoded(backbone, inputs)["features"]
    # On a CPU the same batch gives the same bits; on a GPU some kernels add in no fixed order.
    allowed = 0.0 if backbone.device.type == "cpu" else tolerance
    advice = "Let nothing in it be random, such as dropout, and no state change from batch to batch"
    _compare(backbone, "determinism", "the same batch gives other features", features, again, allowed, advice)

    advice = "Let nothing in it mix the images of a batch, such as normalisation by a batch's own statistics"
    alone = _encoded(backbone, inputs.part(slice(0, 1)))["features"]
    what = "an image alone has other features than among others"
    _compare(backbone, "batch invariance", what, features[:1], alone, tolerance, advice)
    moved = _encoded(backbone, inputs.part(slice(None, None, -1)))["features"][::-1]
    what = "an image has other features at another place in the batch"
    _compare(backbone, "batch invariance", what, features, moved, tolerance, advice)


def _pictures(count: int) -> list[UInt8[np.ndarray, "height width 3"]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*SIZES[number % len(SIZES)], 3), np.uint8) for number in range(count)]


def _encoded(backbone: Backbone, inputs: Inputs) -> StoredImages:
    count = len(inputs.pixels)
    try:
        return backbone.encode_inputs([""] * count, inputs)
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a network may know one image and no batch
        raise _failure(
            backbone,
            "shape",
            f"a batch of {backbone.settings.batch_size} images stops with {type(error).__name__}: {error}",
            "Let it take batches of features.batch_size images",
        ) from error


def _check_shape(backbone: Backbone, found: StoredImages, count: int) -> None:
    wanted = (count, backbone.visual_tokens, backbone.feature_width)
    if found["features"].shape != wanted:
        raise _failure(
            backbone,
            "shape",
            f"a batch of {backbone.settings.batch_size} images gives features {found['features'].shape} for {count} of "
            f"them, but from a single image {wanted} were expected",
            "Let it give every image as many visual tokens of the same width, whatever the batch",
        )


def _check_finite(backbone: Backbone, features: Float16[np.ndarray, "images V D"]) -> None:
    wrong = int((~np.isfinite(features)).sum())
    if wrong:
        raise _failure(
            backbone,
            "finite values",
            f"{wrong:,} of {features.size:,} features are NaN or too large for float16 (above 65,504)",
            "Choose another features.layer, or features.precision fp32 or bf16, and look for a division by zero",
        )


def _check_boxes(backbone: Backbone, boxes: Float32[np.ndarray, "images V 4"]) -> None:
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(axis=2)
    blind = int((areas.max(axis=1) <= 0).sum())
    if blind:
        raise _failure(
            backbone,
            "boxes",
            f"in {blind} of {len(boxes)} images no visual token has a box with an area",
            "Let its boxes be x0, y0, x1, y1 as fractions of width and height, and its preprocessing show part of each "
            "image",
        )


def _compare(
    backbone: Backbone,
    test: str,
    what: str,
    first: Float16[np.ndarray, "images V D"],
    second: Float16[np.ndarray, "images V D"],
    tolerance: float,
    advice: str,
) -> None:
    largest = float(np.abs(first.astype(np.float32)).max())
    difference = float(np.abs(first.astype(np.float32) - second).max())
    if not difference <= tolerance * largest:
        raise _failure(
            backbone,
            test,
            f"{what}: the largest difference is {difference:.3g}, the largest feature {largest:.3g}, and "
            f"{tolerance:.2g} of it may be rounding",
            advice,
        )


def _failure(backbone: Backbone, test: str, found: str, advice: str) -> UsageError:
    return UsageError(f"{backbone.settings.backbone} fails the self-test of {test}: {found}. {advice}")
