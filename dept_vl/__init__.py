"""Decomposed prompt tuning (DePT) for vision-language models: extract, train, evaluate.

Importing this package loads no torch; the names below do when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dept_vl.inference import evaluate_run
    from dept_vl.model.budget import solve_budget
    from dept_vl.model.decomposed_prompt import DecomposedPrompt
    from dept_vl.predict import Predictor
    from feature_extraction import FeatureStore

__version__ = "0.1.0"
__all__ = ["DecomposedPrompt", "FeatureStore", "Predictor", "evaluate_run", "solve_budget"]

_HOMES = {
    "DecomposedPrompt": "dept_vl.model.decomposed_prompt",
    "FeatureStore": "feature_extraction",
    "Predictor": "dept_vl.predict",
    "evaluate_run": "dept_vl.inference",
    "solve_budget": "dept_vl.model.budget",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dept_vl' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
