"""Whether a backbone can do what the settings ask of it, told before anything is trained."""

from __future__ import annotations

import torch

from dept_vl.model.backbone import Backbone
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import Encoder
from dept_vl.settings import Settings
from feature_extraction.errors import UsageError


def check_family(settings: Settings, backbone: Backbone) -> None:
    """Refuse what a backbone of this family cannot do.

    Raises:
        UsageError: images without a T5, or generation without a decoder.
    """
    config, family = backbone.model.config, backbone.family
    for name, task in settings.tasks.items():
        if task.images_per_example and config.model_type != "t5":
            raise UsageError(
                f"Task {name} has images, but the text backbone {backbone.name!r} is of type {config.model_type!r}: "
                "visual tokens go with a T5 (v1.0, v1.1 or Flan). Choose one with --backbone, such as t5-mini"
            )
        if family == "encoder" and task.head != "classification":
            raise UsageError(
                f"Task {name} has task.head={task.head}, but {backbone.name!r} ({config.model_type}) is an encoder "
                "alone and generates nothing. Set task.head=classification, or choose a backbone with a decoder"
            )


def check_positions(settings: Settings, backbone: Backbone, encoder: Encoder) -> None:
    """Refuse texts for which the model has too few positions; a T5 has no such limit.

    Raises:
        UsageError: names by how much the text limit is too high.
    """
    positions = getattr(backbone.model.config, "max_position_embeddings", None)
    if positions is None or isinstance(encoder, MultimodalEncoder):
        return
    available = positions - _unused_positions(backbone)
    prompt_length = max((len(prompt.prompt) for prompt in encoder.prompts().values()), default=0)
    for name, task in settings.tasks.items():
        answer_length = task.max_target_length if backbone.family == "decoder" else 0
        needed = prompt_length + task.max_text_length + answer_length
        if needed > available:
            raise UsageError(
                f"Task {name} needs {needed:,} positions (prompt, task.max_text_length and, of a decoder-only model, "
                f"task.max_target_length), but {backbone.name!r} has {available:,}. Lower task.max_text_length by "
                f"{needed - available}"
            )


def _unused_positions(backbone: Backbone) -> int:
    """RoBERTa and its like number positions from behind the padding token's id."""
    positions = [
        module
        for name, module in backbone.model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
    ]
    starts = [module.padding_idx + 1 for module in positions if module.padding_idx is not None]
    return max(starts, default=0)
