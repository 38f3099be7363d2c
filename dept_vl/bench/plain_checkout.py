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


class _Names(ModuleType):
    """A module that has every name of a type."""

    def __getattr__(self, name: str) -> type[_Annotation]:
        if not name[0].isupper():
            raise AttributeError(name)
        return _Annotation


def allow_plain_checkout() -> None:
    """Let modules import jaxtyping's names where it is not installed; their annotations then say nothing.

    To be called before anything else of ours is imported.
    """
    if "jaxtyping" in sys.modules or importlib.util.find_spec("jaxtyping") is not None:
        return
    sys.modules["jaxtyping"] = _Names("jaxtyping")
