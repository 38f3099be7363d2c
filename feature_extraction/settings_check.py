"""Whether the settings of an extraction can be met at all, before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from feature_extraction.errors import UsageError
from feature_extraction.images.preprocessing import RESIZES
from feature_extraction.settings import ExtractionSettings

LEAST = {
    "image_size": 1,
    "grid": 1,
    "batch_size": 1,
    "shard_size": 1,
    "workers": 0,
    "max_pixels": 1,
    "region_count": 1,
    "region_image_size": 1,
}
BOX_FILES = (".json", ".jsonl")  # how features.regions ends where it is a file
FRACTIONS = ("region_overlap", "region_min_score")
CHOICES = {"resize": RESIZES, "pooling": ("avg", "max"), "precision": ("fp32", "bf16", "fp16")}


def check_settings(settings: ExtractionSettings) -> None:
    """Check all that needs no backbone.

    Raises:
        UsageError: values that no backbone can have, or that contradict each other; all are named together.
    """
    faults = list(_faults(settings))
    if faults:
        raise UsageError("; ".join(faults))


def _faults(settings: ExtractionSettings) -> Iterator[str]:
    for name, least in LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            yield f"features.{name} is {value}; it must be at least {least}"
    for name in FRACTIONS:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            yield f"features.{name} is {value}; it must be from 0 to 1"
    for name, choices in CHOICES.items():
        value = getattr(settings, name)
        if value not in choices:
            yield f"features.{name} is {value!r}; it is {', '.join(choices[:-1])} or {choices[-1]}"
    if settings.regions is not None and settings.regions.endswith(BOX_FILES):
        for name in ("region_weights", "region_image_size"):
            value = getattr(settings, name)
            if value is not None:
                yield (
                    f"features.{name} is {value!r}, but features.regions is the file {settings.regions}, which needs "
                    "none: set it to null"
                )
    if settings.class_token and settings.regions is not None:
        yield (
            f"features.class_token is true and features.regions is {settings.regions!r}, but with regions every visual "
            "token is a region. Set one of them to its default: false or null"
        )
