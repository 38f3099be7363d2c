"""Transfer: a new run that starts from what another run has trained, as DePT does for few-shot learning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dept_vl.model.adapter import CONFIG_NAME, Adapter
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.heads import ClassificationHead
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import ParameterGroup
from feature_extraction.differences import ABSENT, refuse_differences
from feature_extraction.errors import InputDataError, UsageError

PARTS = {"prompt": {"prompt"}, "prompt_a": {"prompt", "a"}}  # by method.init_parts; "all" is whatever there is
LETTERS = {"prompt": "P", "a": "A", "b": "B", "w1": "W1", "b1": "b1", "w2": "W2", "b2": "b2", "backbone": "backbone"}
SAME_BACKBONE = ("backbone.hidden_size", "backbone.weight_digest", "backbone.tokenizer_digest")
METHOD_RECORD = "the source's adapter_config.json"
VISUAL, IMAGE_ORDER = "visual_embedding.", "visual_embedding.image_order.weight"


class _Field(NamedTuple):
    """What must be equal in both, and what makes this run like the source."""

    name: str
    own: object
    theirs: object
    remedy: str


def find_adapter(path: Path) -> Path:
    """The adapter folder that ``method.init_from`` names: that of a run of one task, or an adapter folder itself.

    Raises:
        InputDataError: there is no adapter.
        UsageError: there are those of several tasks.
    """
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    if (folder / CONFIG_NAME).is_file():
        return folder
    tasks = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG_NAME}"))
    if tasks:
        raise UsageError(
            f"method.init_from is {path}, which has an adapter for each of the tasks {', '.join(tasks)}. Name one of "
            f"them, as in method.init_from={folder / tasks[0]}"
        )
    raise InputDataError(
        f"method.init_from is {path}, where no trained adapter is. Give the folder of a run that has finished, or an "
        "adapter folder such as RUN/adapter"
    )


@torch.no_grad()
def start_from(
    model: PromptedModel,
    groups: Sequence[ParameterGroup],
    source: Adapter,
    *,
    parts: str,
    identity: Mapping[str, Any],
    path: Path,
) -> list[str]:
    """Put a source's trained tensors into a freshly built model, and tell what was taken over and what was not.

    A is cut to this run's s, or continued by rows of zeros; of its rows those count as trained that were so in the
    source. The rows of image orders are treated likewise. Everything else must have the same shape.

    Args:
        groups: what trains in the model.
        parts: prompt (P), prompt_a (P and A; B stays zero), or all: whatever the method trains, with the visual
            embedding where both have one, and the classification head where task and answers are the same.
        identity: what this run's adapters will be tied to.
        path: the source's adapter folder.

    Raises:
        IncompatibleError: the source does not fit, or has not all of the parts; the model is as it was.
        UsageError: this run has not all of the parts, or the source has several prompts and none is named.
    """
    own = {name: parameter for group in groups for name, parameter in group.parameters.items()}
    theirs = source.tensors
    wanted = PARTS.get(parts, _parts(own) | _parts(theirs))
    missing = PARTS.get(parts, set()) - _parts(own)
    if missing:
        raise UsageError(
            f"method.init_parts is {parts}, but what this run trains has no {_letters(missing)}. Set "
            f"method.init_parts=all, or method.name={source.identity['method']} as in {path}"
        )
    taken = {name: name for name in own if name.startswith("backbone.")} if "backbone" in wanted else {}
    for name in model.encoder.prompts():
        origin = _origin(name, theirs, path)
        taken |= {
            f"{name}.{part}": f"{origin}.{part}" for part in LETTERS if part in wanted and f"{name}.{part}" in own
        }
        # P-tuning's vectors and network; of multitask prompts, the vectors of those tasks that the source has too.
        without_letter = sorted(_parts(own) & _parts(theirs) - LETTERS.keys()) if parts == "all" else []
        taken |= {f"{name}.{part}": f"{origin}.{part}" for part in without_letter}
    visual = {name: name for name in own if parts == "all" and name.startswith(VISUAL) and name in theirs}
    heads = {name: name for name in own if parts == "all" and name in theirs and _same_head(name, model, source)}

    fields = list(_backbone_fields(source, identity))
    fields += _method_fields(own, source, taken, wanted)
    fields += _scale_fields(model, source) if "b" in wanted else []
    fields += _visual_fields(model, source, identity) if visual else []
    _refuse(fields, path)
    taken |= visual | heads
    if not taken:
        raise UsageError(f"Nothing of {path} can be taken over by this run. Choose another source or another method")
    for name, origin in taken.items():
        resizes = name.endswith(".a") or name == IMAGE_ORDER
        own[name].copy_(_resized(theirs[origin], len(own[name])) if resizes else theirs[origin])
    if "a" in wanted:
        for name, prompt in model.encoder.prompts().items():
            if isinstance(prompt, DecomposedPrompt):
                trained = theirs[f"{_origin(name, theirs, path)}.trained_length"]
                prompt.trained_length.copy_(trained.clamp(max=len(prompt.a)))
    return list(_notes(own, source, taken, wanted, path))


def _parts(tensors: Iterable[str]) -> set[str]:
    """Which parts of a method are among the tensors; visual embedding and heads belong to none."""
    found = {name.rpartition(".")[2] for name in tensors if name.startswith("prompt.")} - {"trained_length"}
    return found | {"backbone" for name in tensors if name.startswith("backbone.")}


def _origin(name: str, theirs: Mapping[str, Tensor], path: Path) -> str:
    """The source's prompt that the prompt ``name`` starts from: the only one, that of the same task, or the named one.

    Raises:
        UsageError: none of them.
    """
    names = sorted({tensor.rpartition(".")[0] for tensor in theirs if tensor.startswith("prompt.")})
    if len(names) < 2:
        return names[0] if names else name
    for candidate in (name, f"prompt.{path.name}"):
        if candidate in names:
            return candidate
    raise UsageError(
        f"{path} has the prompts {', '.join(names)}, and this run's {name} could start from any. Name the task as the "
        f"last part of method.init_from, as in RUN/adapter/{names[0].removeprefix('prompt.')}"
    )


def _same_head(name: str, model: PromptedModel, source: Adapter) -> bool:
    """Whether a tensor belongs to a classification head of the same task and answers in both."""
    task = name.removeprefix("heads.").partition(".")[0]
    head = model.heads[task] if name.startswith("heads.") else None
    tasks = (source.identity["task"] or "").split(",")
    return isinstance(head, ClassificationHead) and task in tasks and source.answers.get(task) == head.vocabulary


def _backbone_fields(source: Adapter, identity: Mapping[str, Any]) -> Iterator[_Field]:
    """What was trained is of use on the same weights and tokens only."""
    for key in SAME_BACKBONE:
        if source.identity[key] is not None:  # PEFT's save_pretrained does not know the tokenizer
            yield _Field(key, identity[key], source.identity[key], f"--backbone {source.identity['backbone.name']}")


def _method_fields(
    own: Mapping[str, Tensor], source: Adapter, taken: Mapping[str, str], wanted: set[str]
) -> Iterator[_Field]:
    """The parts of the method, and their sizes."""
    method, theirs = source.identity["method"], _parts(source.tensors)
    instead = " or method.init_parts=prompt" if "prompt" in theirs and wanted != PARTS["prompt"] else ""
    yield _Field(
        "trained parts", _letters(wanted & _parts(own)), _letters(wanted & theirs), f"method.name={method}{instead}"
    )
    length = "method.budget_length" if method in ("prompt", "mpt") else "method.prompt_length"
    sizes = {"prompt": ("prompt length (m)", 0, length), "a": ("rank (r)", 1, "method.rank")}
    sizes["w1"] = sizes["a"]
    inside = {name: tuple(value.shape) for name, value in source.tensors.items() if name.startswith("backbone.")}
    for name, origin in taken.items():
        prompt, _, part = name.rpartition(".")
        if name.startswith("backbone."):
            yield _Field(name, tuple(own[name].shape), inside.pop(name, ABSENT), f"method.* as in {METHOD_RECORD}")
        elif prompt.startswith("prompt") and part not in LETTERS:
            shapes = tuple(own[name].shape), tuple(source.tensors[origin].shape)
            yield _Field(name, *shapes, f"method.* as in {METHOD_RECORD}")
        elif prompt.startswith("prompt") and part in sizes and origin in source.tensors:
            what, axis, setting = sizes[part]
            size = source.tensors[origin].shape[axis]
            task = f" of {prompt.removeprefix('prompt.')}" if prompt != "prompt" else ""
            yield _Field(f"{what}{task}", own[name].shape[axis], size, f"{setting}={size}")
    if "backbone" in wanted & _parts(own):
        for name, shape in inside.items():
            yield _Field(name, ABSENT, shape, f"method.* as in {METHOD_RECORD}")


def _scale_fields(model: PromptedModel, source: Adapter) -> Iterator[_Field]:
    """The factor of A·B, without which B would mean something else."""
    scale = source.settings["method"]["low_rank_scale"]
    for prompt in model.encoder.prompts().values():
        if isinstance(prompt, DecomposedPrompt):
            theirs = 8 * max(prompt.a.shape[1], 1) ** -0.5 if scale == "official" else 1.0
            yield _Field("scale of A·B", round(prompt.scale, 4), round(theirs, 4), f"method.low_rank_scale={scale}")


def _visual_fields(model: PromptedModel, source: Adapter, identity: Mapping[str, Any]) -> Iterator[_Field]:
    """What the visual embedding has learned to read."""
    keys = {key: None for key in (*identity, *source.identity) if key.startswith("features.")}
    for key in keys:
        advice = "a feature store extracted as the source's"
        yield _Field(key, identity.get(key, ABSENT), source.identity.get(key, ABSENT), advice)
    area = source.settings["visual"]["area"]
    visual = model.encoder.visual_embedding
    own = "vl_t5" if visual is not None and visual.vl_t5_area else "true"
    yield _Field("visual.area", own, area, f"visual.area={area}")


def _refuse(fields: Iterable[_Field], path: Path) -> None:
    """Compare all fields at once.

    Raises:
        IncompatibleError: some differ.
    """
    fields = list(dict.fromkeys(fields))
    remedies = dict.fromkeys(field.remedy for field in fields if field.own != field.theirs)
    refuse_differences(
        {field.name: field.own for field in fields},
        {field.name: field.theirs for field in fields},
        what=f"This run cannot start from {path} (expected: this run; got: the source)",
        advice=f"Choose another source, or make this run like it: {', '.join(remedies)}",
    )


def _resized(rows: Tensor, length: int) -> Tensor:
    """The first ``length`` rows, or all of them and zeros behind."""
    return torch.cat([rows[:length], rows.new_zeros(max(length - len(rows), 0), rows.shape[1])])


def _notes(
    own: Mapping[str, Tensor], source: Adapter, taken: Mapping[str, str], wanted: set[str], path: Path
) -> Iterator[str]:
    parts = [_letters(wanted)] if wanted & LETTERS.keys() else []
    parts += [name for name in taken if name.startswith("prompt") and name.rpartition(".")[2] not in LETTERS]
    parts += ["the visual embedding"] if any(name.startswith(VISUAL) for name in taken) else []
    heads = dict.fromkeys(name.split(".")[1] for name in own if name.startswith("heads."))
    carried = {name.split(".")[1] for name in taken if name.startswith("heads.")}
    parts += [f"the classification head of {task}" for task in heads if task in carried]
    trained_on = f"{source.identity['method']} trained on {source.identity['task'] or 'an unnamed task'}"
    yield f"Starting from {path} ({trained_on}): {', '.join(parts)}"
    for name, origin in taken.items():
        here, there = len(own[name]), len(source.tensors[origin])
        if (name.endswith(".a") or name == IMAGE_ORDER) and here != there:
            what = "The embedding of image orders" if name == IMAGE_ORDER else f"A ({name})"
            change = f"cut to {here}" if here < there else f"continued by zeros to {here}"
            yield f"{what} has {there} rows in the source and is {change}"
    if any(name.startswith(VISUAL) for name in own) and not any(name.startswith(VISUAL) for name in taken):
        yield "The visual embedding starts fresh"
    fresh = [task for task in heads if task not in carried]
    if fresh:
        yield f"The classification head of {', '.join(fresh)} starts fresh"


def _letters(parts: set[str]) -> str:
    return ", ".join(letter for part, letter in LETTERS.items() if part in parts) or "none"
