"""Towers from transformers: the vision models themselves, and the vision part of CLIP, SigLIP and the like."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.images.preprocessing import Preprocessing
from feature_extraction.quiet_transformers import quiet
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import FeatureMaps, Tower, tokens_as_map
from feature_extraction.weights import weights_file, weights_of_another_network


def hugging_face_tower(name: str, settings: ExtractionSettings) -> Tower:
    """A vision model by hub id or local folder; ``layer`` counts its ``hidden_states``, 0 being the embeddings.

    Raises:
        UsageError: there is no such layer.
        InputDataError: the model or its preprocessing cannot be had.
        IncompatibleError: the weights are of another network.
    """
    try:
        with quiet():
            whole = AutoConfig.from_pretrained(name)
            config = getattr(whole, "vision_config", whole)
            network, report = _load(name, config, settings)
            # Pillow's processor gives the same numbers on every machine; only its values are used here.
            processor = AutoImageProcessor.from_pretrained(name, backend="pil")  # type: ignore[no-untyped-call]
            interpolation = Image.Resampling(processor.resample).name.lower()
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    except Exception as error:  # the hub's failures have no common type
        raise InputDataError(
            f"hf/{name} could not be had: {type(error).__name__}: {' '.join(str(error).split())[:500]}. Give the id of "
            "a vision model on the Hugging Face hub, or a folder with config.json, model.safetensors and "
            "preprocessor_config.json"
        ) from error
    _refuse_missing(network, report, name, settings)
    transform = Preprocessing(settings.image_size, interpolation, mean, std, settings.resize)
    return Tower(network, _FeatureMaps(network, config, settings), transform)


class _FeatureMaps:
    """The output, or one hidden state, of a network as a map and a class token; register tokens are dropped."""

    def __init__(self, network: nn.Module, config: PreTrainedConfig, settings: ExtractionSettings) -> None:
        self._network, self._layer = network, settings.layer
        patch = getattr(config, "patch_size", None)
        self._patch = patch if isinstance(patch, int) else 0  # pixels; 0: the network has no patches
        self._side = settings.image_size // self._patch if self._patch else 0
        self._registers = getattr(config, "num_register_tokens", 0)
        known = inspect.signature(network.forward).parameters
        self._options: dict[str, Any] = {"output_hidden_states": settings.layer is not None}
        if "interpolate_pos_encoding" in known:  # changes nothing at the size the network was trained for
            self._options["interpolate_pos_encoding"] = True
        self._wants_patches = "spatial_shapes" in known

    def __call__(self, images: Float[Tensor, "B 3 size size"]) -> FeatureMaps:
        inputs = self._patches(images) if self._wants_patches else {"pixel_values": images}
        output = self._network(**inputs, **self._options)
        hidden: Tensor = output.last_hidden_state if self._layer is None else self._state(output.hidden_states)
        if hidden.ndim == 4:
            return FeatureMaps(hidden)
        before = self._before_patches(hidden.shape[1])
        class_token = hidden[:, 0] if before > self._registers else None
        return FeatureMaps(tokens_as_map(hidden[:, before:]), class_token)

    def _before_patches(self, tokens: int) -> int:
        """How many tokens stand before the patches: the class token, then registers."""
        if self._side == 0:  # a ConvNeXt, say; there may be a class token
            return int(math.isqrt(tokens) ** 2 != tokens)
        return max(0, tokens - self._side**2)  # a pyramid has fewer tokens than patches, and no others

    def _patches(self, images: Float[Tensor, "B 3 size size"]) -> dict[str, Any]:
        """The images as SigLIP 2 wants them where it takes images of any shape: as rows of pixels, patch by patch."""
        side, patch = self._side, self._patch
        whole = images[..., : side * patch, : side * patch]
        cut = whole.reshape(*whole.shape[:2], side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": cut.flatten(1, 2).flatten(2),
            "pixel_attention_mask": None,
            "spatial_shapes": torch.full((len(images), 2), side),
        }

    def _state(self, states: tuple[Tensor, ...]) -> Tensor:
        layer = self._layer
        if layer is None or not -len(states) <= layer < len(states):
            raise UsageError(
                f"features.layer is {layer}, but the backbone has {len(states)} hidden states: 0 (embeddings) to "
                f"{len(states) - 1}, or null for its output"
            )
        return states[layer]


def _load(name: str, config: PreTrainedConfig, settings: ExtractionSettings) -> tuple[nn.Module, dict[str, Any]]:
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    if settings.weights is None:
        network, report = AutoModel.from_pretrained(name, use_safetensors=True, **options)
    else:
        weights = load_file(weights_file(settings.weights))
        architecture = type(AutoModel.from_config(config))  # type: ignore[no-untyped-call]
        network, report = architecture.from_pretrained(None, state_dict=weights, **options)
    return network, report


def _refuse_missing(network: nn.Module, report: dict[str, Any], name: str, settings: ExtractionSettings) -> None:
    """Refuse weights that would stay random; a missing pooling head is cut off, since no feature needs it."""
    missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
    if missing or report["mismatched_keys"]:
        fault = f"missing {sorted(missing)}, of other shapes {sorted(report['mismatched_keys'])}"
        raise weights_of_another_network(fault, network=f"hf/{name}", source=settings.weights or name)
    if report["missing_keys"]:
        network.register_module("pooler", None)
