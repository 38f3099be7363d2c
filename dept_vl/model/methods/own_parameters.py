"""Methods that add nothing and train the backbone's own parameters: all, its biases, or its norms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion, Placement
from dept_vl.model.methods.parts import choose_fixed
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError


def train_all(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """The whole backbone trains, whatever the budget: full fine-tuning is what the others are measured by."""
    return Insertion("backbone", list(backbone.model.parameters()), "")


def train_biases(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """The biases of all layers and norms train (BitFit, Ben Zaken et al. 2022).

    T5's relative attention bias is none of these: it is a table of embeddings.

    Args:
        allowed: parameters; None for no limit.

    Raises:
        UsageError: the backbone has no biases, or they are too many.
    """
    named = backbone.model.named_parameters()
    biases = {name: value for name, value in named if name.rpartition(".")[2].endswith("bias")}
    if not biases:
        raise UsageError(
            f"BitFit trains biases, and {backbone.name!r} ({backbone.model.config.model_type}) has none. Choose "
            "--method ln_tuning, which trains its norms, or a backbone with biases, such as a BART, GPT-2 or BERT"
        )
    return _insertion("BitFit", "the biases of", biases, allowed)


def train_norms(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """The weights and biases of all norms train (LN tuning, Zhao et al. 2023).

    Args:
        allowed: parameters; None for no limit.

    Raises:
        UsageError: the backbone's norms have no parameters, or these are too many.
    """
    norms = {
        f"{name}.{key}": value
        for name, module in backbone.model.named_modules()
        if type(module).__name__.endswith("Norm")  # LayerNorm, T5LayerNorm, LlamaRMSNorm, ...
        for key, value in module.named_parameters(recurse=False)
    }
    if not norms:
        raise UsageError(
            f"LN tuning trains norms, and those of {backbone.name!r} ({backbone.model.config.model_type}) have no "
            "parameters. Choose another method, such as dept"
        )
    return _insertion("LN tuning", "the norms", norms, allowed)


def _insertion(method: str, what: str, chosen: Mapping[str, nn.Parameter], allowed: int | None) -> Insertion:
    layers = list(dict.fromkeys(name.split(".")[-2] for name in chosen))
    size = sum(value.numel() for value in chosen.values())
    placement = Placement(f"{what} {', '.join(layers)}", list(chosen), lambda _: size)
    _, note = choose_fixed(method=method, placements=[placement], allowed=allowed)
    return Insertion("backbone", list(chosen.values()), note)
