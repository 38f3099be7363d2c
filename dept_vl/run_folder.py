"""A run's folder: the settings that define it, what it was made of, and its adapter.

``config.yaml`` resolved settings, ``run.json`` command, versions, seeds and digests, ``log.jsonl``, ``checkpoints/``,
``adapter/`` once training has finished, ``evaluation/SPLIT/``.
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

from dept_vl.config import Settings, settings_from_yaml, settings_to_yaml
from dept_vl.model.adapter import (
    Adapter,
    adapter_identity,
    load_adapter,
    restore_tensors,
    save_adapter,
)
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import build_model
from dept_vl.model.trainable import TrainableCount
from dept_vl.model.vl_t5 import VLT5
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
    *, command: str, settings: Settings, data: Path, features: Path, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What run.json says: how the run was started, and what it was made of."""
    versions = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return {
        "command": command,
        "data": str(data.resolve()),
        "features": str(features.resolve()),
        "seed": settings.training.seed,
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


def publish_adapter(folder: Path, adapter: Adapter) -> Path:
    """Put the finished adapter at ``folder/adapter``, in one step."""
    final = folder / "adapter"
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    save_adapter(partial, adapter)
    commit_directory(partial, final)
    return final


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record["identity"], "--data": record["data"], "--features": record["features"]}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


class LoadedRun(NamedTuple):
    """A trained run, ready to answer."""

    settings: Settings
    task: Task
    backbone: Backbone
    model: VLT5
    trainable: TrainableCount
    store: FeatureStore
    data: Path


def load_run(
    folder: Path, *, overrides: Sequence[str] = (), features: Path | None = None, data: Path | None = None
) -> LoadedRun:
    """Build the model of a finished run and put its adapter in.

    Args:
        overrides: settings to change, as ``section.key=value``.
        features: a feature store to use instead of the run's.
        data: a data folder to use instead of the run's.

    Raises:
        InputDataError: no run, or training has not finished.
        IncompatibleError: the backbone, the tokenizer, the features or the overrides are not those of the adapter.
        DamagedError: a file of the adapter or the store is not what was written.
    """
    record = read_record(folder)
    settings = settings_from_yaml(folder / "config.yaml", overrides)
    if not (folder / "adapter").is_dir():
        raise InputDataError(
            f"{folder} has no adapter yet: training has not finished. Go on with it by its own command: "
            f"{record['command']}"
        )
    store = FeatureStore.open(features or Path(record["features"]))
    store.verify()
    backbone = load_backbone(settings.backbone, dtype=compute_dtype(settings))
    identity = adapter_identity(backbone, task=settings.task.name, method=settings.method.name, features=store.identity)
    adapter = load_adapter(folder / "adapter", expected_identity=identity)
    refuse_differences(
        _flat({section: adapter.settings[section] for section in TRAINED_SECTIONS}),
        _flat({section: asdict(settings)[section] for section in TRAINED_SECTIONS}),
        what=f"The adapter in {folder / 'adapter'} was trained with other settings (expected: its own; got: these)",
        advice="Leave these settings as they are: what was trained is of use with them only",
    )
    built = build_model(
        settings, backbone, visual_tokens=store.visual_tokens, feature_width=store.feature_width, seed=0
    )
    restore_tensors(built.model, built.groups, adapter.tensors, folder / "adapter")
    built.model.eval()
    return LoadedRun(
        settings=settings,
        task=load_task(settings.task),
        backbone=backbone,
        model=built.model,
        trainable=built.trainable,
        store=store,
        data=data or Path(record["data"]),
    )


def compute_dtype(settings: Settings) -> torch.dtype:
    """What frozen weights are kept in; weights that train stay in fp32, also under bf16."""
    frozen_bf16 = settings.training.precision == "bf16" and settings.method.name != "full"
    return torch.bfloat16 if frozen_bf16 else torch.float32
