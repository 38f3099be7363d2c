"""Benchmarks run from a checkout where only torch, transformers, timm and peft are installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Annotation:
    """Stands where jaxtyping's names do, in annotations, which nothing evaluates at run time."""

    def __class_getitem__(cls, parameters: Any) -> type[_Annotation]:  # noqa: ANN401 - whatever the brackets hold
        return cls


def allow_plain_checkout() -> None:
    """Let modules import jaxtyping's names where it is not installed; their annotations then say nothing.

    To be called before anything else of ours is imported.
    """
    if "jaxtyping" in sys.modules or importlib.util.find_spec("jaxtyping") is not None:
        return
    stand_in = ModuleType("jaxtyping", "Names for annotations alone")
    for name in ("Bool", "Float", "Int", "Int64", "UInt8", "Num", "Shaped"):
        setattr(stand_in, name, _Annotation)
    sys.modules["jaxtyping"] = stand_in
