"""Checkpoints that are whole or absent: trained parameters, the best ones so far, optimizer, and one JSON record.

``checkpoints/step-00000200/`` holds ``model.safetensors``, ``best.safetensors``, ``optimizer.safetensors`` and
``state.json`` with the digests of the others and of itself. There is no clock, host name or pickle in it, so that
equal runs give equal bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from feature_extraction.durable import PARTIAL_SUFFIX, commit_directory, sha256_of_file, write_durably
from feature_extraction.errors import DamagedError
from feature_extraction.store.layout import seal, unseal

KEPT = 2  # checkpoints
TENSOR_FILES = ("model.safetensors", "best.safetensors", "optimizer.safetensors")


@dataclass
class Progress:
    """Where a run stands, next to its tensors.

    Epoch, order of examples, dropout and learning rates are functions of seed and step, so they are not here.
    """

    step: int = 0  # updates done
    best_step: dict[str, int] = field(default_factory=dict)  # of each task that was validated
    best_score: dict[str, float] = field(default_factory=dict)
    validations_without_gain: int = 0  # of any task
    window_loss: dict[str, float] = field(default_factory=dict)  # of each task, summed since the last line of the log
    window_steps: dict[str, int] = field(default_factory=dict)
    finished: bool = False


class Checkpoint(NamedTuple):
    """All that a run needs to go on."""

    progress: Progress
    model: dict[str, Tensor]
    best: dict[int, dict[str, Tensor]]  # by step: those that are some task's best
    optimizer: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, read it back, give it its name in one step, and tidy up.

    Raises:
        DiskFullError: no space; the checkpoints before are untouched.
        DamagedError: the disk does not give back what was written.
    """
    final = folder / f"step-{checkpoint.progress.step:08d}"
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    if final.exists():  # the same step again, by the same run: equal bytes
        return final
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        best = {f"{step}/{name}": value for step, named in checkpoint.best.items() for name, value in named.items()}
        tensors = (checkpoint.model, best, checkpoint.optimizer)
        digests = {
            name: write_durably(partial / name, save(content))
            for name, content in zip(TENSOR_FILES, tensors, strict=True)
        }
        record = {"progress": asdict(checkpoint.progress), "sha256": digests}
        write_durably(partial / "state.json", seal(record, indent=1))
        _verify(partial, digests)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    commit_directory(partial, final)
    tidy(folder)
    return final


def tidy(folder: Path) -> None:
    """Delete what a stopped process left half written, and all checkpoints but the newest."""
    for superfluous in [*folder.glob(f"*{PARTIAL_SUFFIX}"), *checkpoint_folders(folder)[:-KEPT]]:
        shutil.rmtree(superfluous)


def load_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None where a run has none yet.

    Raises:
        DamagedError: its bytes are not those that were written.
    """
    folders = checkpoint_folders(folder)
    if not folders:
        return None
    newest = folders[-1]
    try:
        record = unseal((newest / "state.json").read_bytes())
        if record is None:
            raise DamagedError("state.json does not fit its own digest")
        _verify(newest, record["sha256"])
        model, flat, optimizer = (load((newest / name).read_bytes()) for name in TENSOR_FILES)
        best: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            step, name = key.split("/", 1)
            best.setdefault(int(step), {})[name] = value
        return Checkpoint(Progress(**record["progress"]), model, best, optimizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        before = f"the one before ({folders[-2].name})" if len(folders) > 1 else "the start"
        raise DamagedError(
            f"Checkpoint {newest} is damaged: {error}. Delete this folder and run the same command to go on from "
            f"{before}"
        ) from error


def checkpoint_folders(folder: Path) -> list[Path]:
    """All finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(PARTIAL_SUFFIX))


def _verify(folder: Path, digests: dict[str, str]) -> None:
    for name, expected in digests.items():
        got = sha256_of_file(folder / name)
        if got != expected:
            raise DamagedError(f"{name}: SHA-256 expected {expected}, got {got}")
