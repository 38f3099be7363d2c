"""A run's folder: the settings that define it, what it was made of, and its adapter.

``config.yaml`` resolved settings, ``run.json`` command, versions, seeds and digests, ``log.jsonl``, ``checkpoints/``,
``adapter/`` once training has finished, ``evaluation/SPLIT/``. Of several tasks, each has its best adapter and its
evaluations in a folder of its own, ``adapter/TASK/`` and ``evaluation/TASK/SPLIT/``.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dept_vl.config import settings_from_yaml, settings_to_yaml
from dept_vl.model.adapter import (
    Adapter,
    adapter_identity,
    load_adapter,
    restore_tensors,
    save_adapter,
)
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import build_model
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import TrainableCount
from dept_vl.settings import TRAINS_BACKBONE, Settings, nearest
from dept_vl.tasks.answers import task_answers
from dept_vl.tasks.task import Task, load_task
from feature_extraction import FeatureStore
from feature_extraction.differences import refuse_differences
from feature_extraction.durable import PARTIAL_SUFFIX, commit_directory, write_durably
from feature_extraction.errors import InputDataError, UsageError

TRAINED_SECTIONS = ("method", "visual")  # of the settings: they say what the trained tensors mean
RECORDED_PACKAGES = ("dept_vl", "torch", "transformers", "accelerate", "timm", "numpy", "safetensors")


def open_run(folder: Path, settings: Settings, record: Mapping[str, Any]) -> None:
    """Make the folder of a new run, or find that it is the folder of this very run.

    Raises:
        IncompatibleError: the folder belongs to a run with other settings, data or features.
        UsageError: the folder holds something else.
    """
    config_path, record_path = folder / "config.yaml", folder / "run.json"
    if not record_path.exists():
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        # A run that was stopped in this very function leaves the settings, or a part of either file.
        foreign = [name for name in found if name != config_path.name and not name.endswith(PARTIAL_SUFFIX)]
        if foreign:
            raise UsageError(
                f"--output {folder} holds {foreign[0]!r} but no run. Give a new folder, or one that training made"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(config_path, settings_to_yaml(settings).encode())
        # The record is written last: with it, the folder is a run.
        write_durably(record_path, (json.dumps(record, indent=1) + "\n").encode())
        return
    here = {**_flat(asdict(settings_from_yaml(config_path))), **_identity(read_record(folder))}
    refuse_differences(
        here,
        {**_flat(asdict(settings)), **_identity(record)},
        what=f"{folder} is the run of other settings (expected: its own; got: this command's)",
        advice="Give another --output, or the settings of that run to go on with it",
    )


def run_record(
    *,
    command: str,
    settings: Settings,
    data: Mapping[str, Path],
    features: Mapping[str, Path],
    identity: Mapping[str, Any],
    source_digest: str | None = None,
) -> dict[str, Any]:
    """What run.json says: how the run was started, and what it was made of.

    ``source_digest`` is that of the tensors that it started from, if it did not start from nothing.
    """
    versions = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return {
        "command": command,
        "data": {task: str(path.resolve()) for task, path in data.items()},
        "features": {task: str(path.resolve()) for task, path in features.items()},
        "seed": settings.training.seed,
        "source_digest": source_digest,
        "identity": dict(identity),
        "versions": {"python": platform.python_version(), **versions},
        "threads": torch.get_num_threads(),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        InputDataError: the folder is not that of a run.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise InputDataError(
            f"{folder} is not the folder of a run: run.json cannot be read ({error}). "
            "Give the --output folder of python -m dept_vl.train"
        ) from error
    return record


def publish_adapters(folder: Path, adapters: Mapping[str, Adapter], settings: Settings) -> Path:
    """Put the finished adapter of each task into ``folder/adapter``, in one step."""
    final = folder / "adapter"
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    for task, adapter in adapters.items():
        save_adapter(task_folder(partial, settings, task), adapter)
    commit_directory(partial, final)
    return final


def task_folder(folder: Path, settings: Settings, task: str) -> Path:
    """Where a task's files lie inside a folder of all: the folder itself in a run of one task."""
    return folder if len(settings.tasks) == 1 else folder / task


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    paths = {f"--{name} ({task})": path for name in ("data", "features") for task, path in record[name].items()}
    return {**record["identity"], **paths, "tensors of method.init_from": record["source_digest"]}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


class LoadedRun(NamedTuple):
    """A trained run, ready to answer one of its tasks."""

    settings: Settings  # as the task sees them
    task: Task
    adapter: Adapter
    backbone: Backbone
    model: PromptedModel
    trainable: TrainableCount
    store: FeatureStore | None  # None for a run without images
    data: Path


def load_run(
    folder: Path,
    *,
    task: str | None = None,
    overrides: Sequence[str] = (),
    features: Path | None = None,
    data: Path | None = None,
) -> LoadedRun:
    """Build the model of a finished run and put its adapter in.

    Args:
        task: which of the run's tasks; None in a run of one.
        overrides: settings to change, as ``section.key=value``.
        features: a feature store to use instead of the run's.
        data: a data folder to use instead of the run's.

    Raises:
        InputDataError: no run, or training has not finished.
        UsageError: the run has no such task, or has several and none is named.
        IncompatibleError: the backbone, the tokenizer, the features or the overrides are not those of the adapter.
        DamagedError: a file of the adapter or the store is not what was written.
    """
    record = read_record(folder)
    settings = settings_from_yaml(folder / "config.yaml", overrides)
    task = choose_task(folder, settings, task)
    if not (folder / "adapter").is_dir():
        raise InputDataError(
            f"{folder} has no adapter yet: training has not finished. Go on with it by its own command: "
            f"{record['command']}"
        )
    # A task without images has no features of its own; beside one with images its model has a visual part all the same.
    path = features or record["features"].get(task) or next(iter(record["features"].values()), None)
    store = FeatureStore.open(Path(path)) if path else None
    backbone = load_backbone(settings.backbone, dtype=compute_dtype(settings))
    identity = run_identity(settings, backbone, store)
    adapter_path = task_folder(folder / "adapter", settings, task)
    adapter = load_adapter(adapter_path, expected_identity=identity)
    refuse_differences(
        _flat({section: adapter.settings[section] for section in TRAINED_SECTIONS}),
        _flat({section: asdict(settings)[section] for section in TRAINED_SECTIONS}),
        what=f"The adapter in {adapter_path} was trained with other settings (expected: its own; got: these)",
        advice="Leave these settings as they are: what was trained is of use with them only",
    )
    if store is not None:
        store.verify()  # it reads everything, so what is told at once comes first
    built = build_model(
        settings,
        backbone,
        visual_tokens=store.visual_tokens if store else 0,
        feature_width=store.feature_width if store else 0,
        seed=0,
        answers=dict(adapter.answers)
        | _missing_answers(settings, adapter, {**record["data"], **({task: data} if data else {})}),
    )
    restore_tensors(built.model, built.groups, adapter.tensors, adapter_path)
    built.model.encoder.fold()
    built.model.eval()
    return LoadedRun(
        settings=settings.of(task),
        task=load_task(settings.tasks[task]),
        adapter=adapter,
        backbone=backbone,
        model=built.model,
        trainable=built.trainable,
        store=store,
        data=data or data_folder(record, task),
    )


def data_folder(record: Mapping[str, Any], task: str) -> Path:
    """Where the data of a run's task lay when it was trained.

    Raises:
        UsageError: nowhere, as of an imported run.
    """
    if task not in record["data"]:
        raise UsageError(f"The run was not trained here and names no data for {task}. Give the data set: --data DIR")
    return Path(record["data"][task])


def _missing_answers(settings: Settings, adapter: Adapter, data: Mapping[str, str | Path]) -> dict[str, list[str]]:
    """The vocabularies that the settings ask for now, though the training did not: from its training examples."""
    found = {}
    for name, task_settings in settings.tasks.items():
        if task_settings.constrained and name not in adapter.answers:
            task, folder = load_task(task_settings), data_folder({"data": data}, name)
            found[name] = task_answers(task, task_settings, task.read(folder, "train"), folder) or []
    return found


def choose_task(folder: Path, settings: Settings, task: str | None) -> str:
    """The named task of a run, or the only one.

    Raises:
        UsageError: the run has no such task, or has several and none is named.
    """
    names = list(settings.tasks)
    if task is None and len(names) > 1:
        raise UsageError(f"{folder} has several tasks; name one of them, as in --task {names[0]}: {', '.join(names)}")
    if task is not None and task not in names:
        raise UsageError(f"{folder} has no task {task!r}.{nearest(task, names)} It has: {', '.join(names)}")
    return task or names[0]


def run_identity(settings: Settings, backbone: Backbone, store: FeatureStore | None) -> dict[str, Any]:
    """What the adapters of a run are tied to."""
    names = ",".join(task.name for task in settings.tasks.values())
    return adapter_identity(backbone, task=names, method=settings.method.name, features=store.identity if store else {})


def compute_dtype(settings: Settings) -> torch.dtype:
    """What frozen weights are kept in; weights that train stay in fp32, also under bf16."""
    frozen_bf16 = settings.training.precision == "bf16" and settings.method.name not in TRAINS_BACKBONE
    return torch.bfloat16 if frozen_bf16 else torch.float32
