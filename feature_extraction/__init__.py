"""Images → frozen backbone → a store of visual tokens on disk. Knows nothing of T5, tasks or training.

The front door: ``FeatureStore`` reads a store, ``extract_features`` writes one, ``ExtractionSettings`` says how.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_extraction.extract import extract_features
    from feature_extraction.settings import ExtractionSettings
    from feature_extraction.store.reader import FeatureStore

__all__ = ["ExtractionSettings", "FeatureStore", "extract_features"]

_HOMES = {"ExtractionSettings": "settings", "FeatureStore": "store.reader", "extract_features": "extract"}


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that readers of a store never load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
