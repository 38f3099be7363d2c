"""An adapter folder as what answers with it in a mixed batch, or why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dept_vl.model.adapter import FORMAT, Adapter, load_adapter
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import generating_head
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.families import EncoderDecoder
from dept_vl.model.heads import GenerationHead
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import Task, load_task
from feature_extraction.differences import refuse_differences
from feature_extraction.errors import IncompatibleError
from feature_extraction.weights import weight_digest

SERVED_METHODS = ("dept", "prompt", "visual_only")
SERVED_HEADS = ("generation", "first_step")
# Of the identity: what must be equal to the service's. The name of the backbone may be another for the same weights.
SHARED_FIELDS = ("format", "backbone.weight_digest", "backbone.tokenizer_digest", "backbone.hidden_size")
VISUAL = "visual_embedding."


class MergedPrompt(NamedTuple):
    """A prompt, and what its A·B adds to the text, as one table."""

    prompt: Float[Tensor, "P H"]
    table: Float[Tensor, "s H"]  # scale * A·B, a row for each text position that training reached


class ServedAdapter(NamedTuple):
    """What else a row of a mixed batch needs of its adapter."""

    method: str
    task: Task
    settings: TaskSettings
    head: GenerationHead
    visual: VisualEmbedding | None  # None where the task has no images
    visual_key: str  # equal for equal visual embeddings
    vl_t5_positions: bool


class LoadedAdapter(NamedTuple):
    """An adapter as its folder has it."""

    merged: MergedPrompt
    served: ServedAdapter


def read_adapter(
    folder: Path, backbone: Backbone, *, features: Mapping[str, Any] | None, family: EncoderDecoder
) -> LoadedAdapter:
    """Read an adapter folder, check that it belongs to the backbone and the features, and merge its parts.

    Args:
        features: identity of the feature store that images are read from; None for a service without images.
        family: which generates, on the library's layers or the lean ones.

    Raises:
        InputDataError: there is no adapter in the folder.
        DamagedError: a file is not what was written.
        IncompatibleError: it belongs to another backbone, tokenizer or feature store, or is of a kind that cannot be
            one of many in a batch.
    """
    adapter = load_adapter(folder)
    settings = _task_settings(folder, adapter)
    method = adapter.identity["method"]
    _refuse_kinds(folder, method, settings)
    theirs = {key: value for key, value in adapter.identity.items() if key in SHARED_FIELDS}
    ours = {
        "format": FORMAT,
        "backbone.weight_digest": backbone.weight_digest,
        "backbone.tokenizer_digest": backbone.tokenizer_digest,
        "backbone.hidden_size": backbone.hidden_size,
    }
    if settings.images_per_example:
        theirs |= {key: value for key, value in adapter.identity.items() if key.startswith("features.")}
        ours |= {f"features.{key}": value for key, value in (features or {}).items()}
    refuse_differences(
        ours,
        theirs,
        what=f"The adapter in {folder} was trained for something else (expected: what is served; got: its own)",
        advice="Serve it on its own --backbone and --features",
    )
    official_scale = adapter.settings["method"]["low_rank_scale"] == "official"
    visual = _visual(adapter, backbone) if settings.images_per_example else None
    served = ServedAdapter(
        method=method,
        task=load_task(settings),
        settings=settings,
        head=generating_head(settings, backbone, family=family, answers=adapter.answers.get(settings.name)),
        visual=visual,
        visual_key="" if visual is None else f"{weight_digest(visual.state_dict())} {visual.vl_t5_area}",
        vl_t5_positions=adapter.settings["visual"]["position_rule"] == "vl_t5",
    )
    return LoadedAdapter(merge(adapter.tensors, settings.name, backbone.hidden_size, official_scale), served)


def merge(tensors: Mapping[str, Tensor], task: str, hidden_size: int, official_scale: bool) -> MergedPrompt:
    """The prompt among an adapter's tensors, and its A·B as one table; either has no rows where there is none.

    The table is what ``DecomposedPrompt`` adds to a text of zeros, so that the two cannot differ.
    """
    name = f"prompt.{task}" if any(tensor.startswith(f"prompt.{task}.") for tensor in tensors) else "prompt"
    nothing = torch.zeros(0, hidden_size)
    prompt = tensors.get(f"{name}.prompt", nothing)  # of length 0 it is not saved
    if f"{name}.a" not in tensors:
        return MergedPrompt(prompt, nothing)
    a, b = tensors[f"{name}.a"], tensors[f"{name}.b"]
    scale = 8 * max(a.shape[1], 1) ** -0.5 if official_scale else 1.0
    decomposed = DecomposedPrompt(prompt=prompt, a=a, b=b, scale=scale).eval()
    decomposed.trained_length.copy_(tensors[f"{name}.trained_length"])
    with torch.no_grad():
        table = decomposed.embed_text(torch.zeros(1, len(a), hidden_size), torch.ones(1, len(a), dtype=torch.bool))
    return MergedPrompt(prompt, table[0, : int(decomposed.trained_length)])


def _task_settings(folder: Path, adapter: Adapter) -> TaskSettings:
    """The settings of the adapter's task: the only one, or of several the one that its folder is named after."""
    tasks: dict[str, dict[str, Any]] = adapter.settings.get("tasks") or {}
    name = next(iter(tasks)) if len(tasks) == 1 else folder.name
    if name not in tasks:
        reason = (
            f"was trained for the tasks {', '.join(tasks)}, and its folder is named after none of them. Name it so, as "
            "training does: RUN/adapter/TASK"
            if tasks
            else "does not say what task it is for, as adapters that PEFT has saved. Serve one that dept_vl has trained"
        )
        raise IncompatibleError(f"The adapter in {folder} {reason}")
    unknown = sorted(set(tasks[name]) - {field.name for field in fields(TaskSettings)})
    if unknown:
        raise IncompatibleError(
            f"The adapter in {folder} has the setting task.{unknown[0]}, which this version of dept_vl does not know. "
            "Serve it by the version that trained it"
        )
    return TaskSettings(**tasks[name])


def _refuse_kinds(folder: Path, method: str, settings: TaskSettings) -> None:
    """See that an adapter is of a kind whose rows can stand beside those of others.

    Raises:
        IncompatibleError: it is not.
    """
    for what, kind, served in (("method", method, SERVED_METHODS), ("head", settings.head, SERVED_HEADS)):
        if kind not in served:
            raise IncompatibleError(
                f"The adapter in {folder} is of {what} {kind}. Served in mixed batches are adapters of {what} "
                f"{', '.join(served)}; let it answer by itself: dept_vl.Predictor, python -m dept_vl.evaluate"
            )


def _visual(adapter: Adapter, backbone: Backbone) -> VisualEmbedding:
    weights = {name.removeprefix(VISUAL): tensor for name, tensor in adapter.tensors.items() if name.startswith(VISUAL)}
    hidden_size, feature_width = weights["feature_projection.weight"].shape
    visual = VisualEmbedding(
        feature_width=feature_width,
        hidden_size=hidden_size,
        images=len(weights["image_order.weight"]),
        tokens_per_image=len(weights["object_order.weight"]),
        epsilon=backbone.model.config.layer_norm_epsilon,
        vl_t5_area=adapter.settings["visual"]["area"] == "vl_t5",
    )
    visual.load_state_dict(weights)
    return visual.requires_grad_(False).eval()
