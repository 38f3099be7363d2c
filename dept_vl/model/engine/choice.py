"""Which layers a model runs on: the library's, or the lean ones."""

from __future__ import annotations

from typing import Any, cast

import torch

from dept_vl.model.backbone import Backbone
from dept_vl.model.engine.family import LeanEncoderDecoder
from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.model.heads import Head
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.settings import Settings
from feature_extraction.errors import UsageError

GPU_ALIGNMENT = 8  # positions; what attention kernels want for a mask of 16-bit numbers


def choose_engine(model: PromptedModel, settings: Settings, backbone: Backbone, *, changed: bool) -> list[str]:
    """Put lean layers into a model where the settings ask for them or a GPU gains by them; what to tell the user.

    Args:
        changed: whether the method put something into the backbone's layers, or trains weights of its own there.

    Raises:
        UsageError: the lean layers are asked for where they cannot be.
    """
    wanted, on_gpu = settings.backbone.engine, torch.cuda.is_available()
    reason = _obstacle(settings, backbone, changed=changed)
    if wanted == "lean" and reason:
        raise UsageError(f"backbone.engine is 'lean', but {reason}. Set backbone.engine=auto")
    if wanted == "library" or reason or (wanted == "auto" and not on_gpu):
        if settings.training.checkpoint_activations:
            cast(Any, backbone.model).activation_checkpointing_enable()
        return [f"The library's layers are used, not the lean ones: {reason}"] if wanted == "auto" and on_gpu else []
    compiled = on_gpu if settings.backbone.compiled is None else settings.backbone.compiled
    use_lean(
        model,
        alignment=GPU_ALIGNMENT if on_gpu else 1,
        compiled=compiled,
        checkpointed=settings.training.checkpoint_activations,
    )
    return [f"Lean T5 layers{', compiled' if compiled else ''}"]


def use_lean(model: PromptedModel, *, alignment: int = 1, compiled: bool = False, checkpointed: bool = False) -> LeanT5:
    """Let lean layers take over those of the library's T5 in a model; arguments as of ``LeanT5``."""
    t5, encoder = cast(Any, model.backbone), cast(MultimodalEncoder, model.encoder)
    lean = LeanT5(t5, alignment=alignment, compiled=compiled, checkpointed=checkpointed)
    encoder.lean = lean
    for head in model.heads.values():
        cast(Head, head).family = LeanEncoderDecoder(lean)
    return lean


def _obstacle(settings: Settings, backbone: Backbone, *, changed: bool) -> str:
    """Why the lean layers cannot be used; empty if they can."""
    kind = backbone.model.config.model_type
    if kind != "t5":
        return f"{settings.backbone.name} is of type {kind}, and they are those of a T5"
    if settings.backbone.quantization != "none":
        return f"its weights are quantised ({settings.backbone.quantization})"
    return f"method {settings.method.name} works inside the library's layers" if changed else ""
