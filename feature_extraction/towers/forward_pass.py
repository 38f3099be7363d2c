"""A frozen tower at work: batches of one shape, in one precision, on one device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from feature_extraction.errors import UsageError
from feature_extraction.images.preprocessing import Preprocessing, Transform
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import FeatureMaps, Tower

# On recent GPUs torch computes fp32 convolutions in TF32, whose mantissa is that of the float16 of a store.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ForwardPass:
    """What a tower makes of a batch.

    Every pass has the same shape: smaller batches are filled up with black images. So the feature map of an image does
    not depend on the images beside it, to the last bit (same device model, thread count and versions). Threads may use
    it at the same time.
    """

    def __init__(self, tower: Tower, settings: ExtractionSettings, device: torch.device) -> None:
        """Freeze the tower, and bring it to the device and the precision."""
        self._settings, self._tower, self._device = settings, tower, device
        dtype = PRECISIONS[settings.precision]
        _channels_last(tower.network.eval().requires_grad_(False).to(device, dtype))
        self._normalised = _normalisation(tower.transform, device, dtype)
        self._feature_maps = _compiled(tower.feature_maps) if settings.compile else tower.feature_maps

    @torch.inference_mode()
    def __call__(self, pixels: Shaped[np.ndarray, "images ..."]) -> FeatureMaps:
        """The feature maps of a whole batch, of which ``pixels`` are the first images and the others black."""
        kind = torch.from_numpy(np.empty(0, pixels.dtype)).dtype
        # A GPU copies from pinned memory while the CPU goes on; torch keeps it for later batches.
        pinned = self._device.type == "cuda"
        batch = torch.empty(self._settings.batch_size, *pixels.shape[1:], dtype=kind, pin_memory=pinned)
        batch.numpy()[: len(pixels)] = pixels
        batch[len(pixels) :] = 0
        return self._feature_maps(self._normalised(batch.to(self._device, non_blocking=True)))

    def with_batch_size(self, batch_size: int) -> ForwardPass:
        """The same pass on batches of another size; a compiled one is compiled once more for it."""
        other = copy.copy(self)
        other._settings = replace(self._settings, batch_size=batch_size)
        return other

    @torch.inference_mode()
    def probe(self) -> FeatureMaps:
        """The feature maps of one black image, not compiled.

        Raises:
            UsageError: the tower gives none with these settings.
        """
        settings = self._settings
        black, _ = self._tower.transform.apply(np.zeros((8, 8, 3), np.uint8))
        try:
            return self._tower.feature_maps(self._normalised(torch.from_numpy(black)[None].to(self._device)))
        except (UsageError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks refuse sizes and layers in many ways
            raise UsageError(
                f"{settings.backbone} gives no feature map with features.image_size={settings.image_size}, "
                f"features.layer={settings.layer} and features.precision={settings.precision}: "
                f"{type(error).__name__}: {error}. Change one of the four"
            ) from error


def _channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions as the quicker kernels want them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def _normalisation(transform: Transform, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What makes of a batch on the device what the network takes: in full precision first, then in its own."""
    if not isinstance(transform, Preprocessing):
        return lambda batch: batch.to(dtype) if batch.is_floating_point() else batch
    # In units of pixel values, so that there is no division by 255.
    mean, std = ((torch.tensor(values) * 255).view(1, 3, 1, 1).to(device) for values in (transform.mean, transform.std))

    def normalised(pixels: UInt8[Tensor, "B size size 3"]) -> Float[Tensor, "B 3 size size"]:
        return ((pixels.permute(0, 3, 1, 2).float() - mean) / std).to(dtype)

    return normalised


def _compiled(feature_maps: Callable[[Tensor], FeatureMaps]) -> Callable[[Tensor], FeatureMaps]:
    """The same function through torch.compile, which its first batch waits for.

    Raises:
        UsageError: when it is called, where there is no compiler.
    """
    from torch._dynamo.exc import TorchDynamoException

    quick = torch.compile(feature_maps, dynamic=False)

    def compiled(images: Tensor) -> FeatureMaps:
        try:
            return quick(images)
        except TorchDynamoException as error:
            reason = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:300]
            raise UsageError(
                f"features.compile is true, but torch.compile failed: {reason}. Install a C++ compiler (g++), and for "
                "a GPU triton, or set features.compile to false"
            ) from error

    return compiled
