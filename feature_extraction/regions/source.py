"""The source of an extraction's regions, as the settings name it."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from feature_extraction.errors import UsageError
from feature_extraction.regions.regions import RegionSource
from feature_extraction.settings import ExtractionSettings
from feature_extraction.settings_check import BOX_FILES

KINDS = ("hf", "torchvision")


def build_regions(settings: ExtractionSettings, device: torch.device) -> RegionSource | None:
    """Where the boxes come from: a detector, a file, or None where the settings name no regions.

    Raises:
        UsageError: a setting that no source, or not this one, can have.
        InputDataError: weights or boxes that cannot be had.
        IncompatibleError: weights of another detector.
    """
    if settings.regions is None:
        return None
    # Each library is loaded only when it is used: they take seconds.
    if settings.regions.endswith(BOX_FILES):
        from feature_extraction.regions.boxes_file import BoxesFile

        return BoxesFile(Path(settings.regions), settings)
    kind, _, name = settings.regions.partition("/")
    if kind == "hf" and name:
        from feature_extraction.regions.detectors import DetectedRegions
        from feature_extraction.regions.hugging_face_detector import hugging_face_detector

        return DetectedRegions(hugging_face_detector(name, settings), settings, device)
    if kind == "torchvision" and name:
        from feature_extraction.regions.detectors import DetectedRegions
        from feature_extraction.regions.torchvision_detector import torchvision_detector

        return DetectedRegions(torchvision_detector(name, settings), settings, device)
    close = [match for match in difflib.get_close_matches(kind, KINDS, n=1) if name and match != kind]
    hint = f". Did you mean {close[0]}/{name}?" if close else ""
    raise UsageError(
        f"features.regions is {settings.regions!r}; it is hf/<detector id or folder>, torchvision/<detector>, or a "
        f"{' or '.join(BOX_FILES)} file of boxes, as in hf/PekingU/rtdetr_r50vd{hint}"
    )
