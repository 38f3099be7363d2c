"""The runs of a few-shot transfer: one for each start, number of examples and seed, trained and evaluated once.

Each of ``FOLDER/runs/SOURCE-PARTS/kK-seedS`` is an ordinary run. A seed draws the examples and is the run's own, so all
sources of one k and seed learn from the same examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from accelerate import Accelerator

from dept_vl import inference
from dept_vl.command_line import StopSignal, say
from dept_vl.config import settings_from_yaml
from dept_vl.model.adapter import load_adapter
from dept_vl.model.transfer import find_adapter
from dept_vl.run_folder import read_record
from dept_vl.settings import Settings
from dept_vl.training import run as training_run
from dept_vl.transfer_results import Cell, Outcome, Start
from feature_extraction.errors import Interrupted
from feature_extraction.weights import weight_digest


def source_starts(sources: Mapping[str, Path], modes: Sequence[str]) -> Iterator[Start]:
    """Every source with every mode; a source that is no adapter is told before any work."""
    for name, path in sources.items():
        folder = find_adapter(path)
        digest = weight_digest(load_adapter(folder).tensors)
        yield from (Start(name, mode, folder.resolve(), digest) for mode in modes)


def run_transfer(
    settings: Settings,
    starts: Sequence[Start],
    *,
    shots: Sequence[int],
    seeds: int,
    folder: Path,
    data: Mapping[str, Path],
    features: Mapping[str, Path],
    command: str,
    stop: StopSignal,
) -> list[Outcome]:
    """Train and evaluate from every start, with every k and seed; what is finished is not done again.

    Raises:
        Interrupted: a signal came; the same call goes on.
    """
    # Its mixed precision is the whole process's: runs that are only evaluated must not set another.
    Accelerator(mixed_precision="bf16" if settings.training.precision == "bf16" else "no")
    # A seed after the other, so that a source which does not fit is told in the first minutes.
    cells = [Cell(start, count, seed) for seed, count, start in product(range(seeds), shots, starts)]
    outcomes = []
    for number, cell in enumerate(cells, start=1):
        if stop:
            raise Interrupted(f"{number - 1} of {len(cells)} runs are done. The same command goes on with the next")
        say(f"[{number} of {len(cells)}] {cell.folder}")
        _train(_settings_of(settings, cell), cell, folder / cell.folder, data, features, command, stop)
        outcomes.append(_evaluated(folder / cell.folder, cell))
    return outcomes


def _settings_of(settings: Settings, cell: Cell) -> Settings:
    method = settings.method
    if cell.start.path is not None:
        method = replace(method, init_from=str(cell.start.path), init_parts=cell.start.parts)
    return replace(
        settings,
        method=method,
        data=replace(settings.data, shots=cell.shots, shots_seed=cell.seed),
        training=replace(settings.training, seed=cell.seed),
    )


def _train(
    settings: Settings,
    cell: Cell,
    folder: Path,
    data: Mapping[str, Path],
    features: Mapping[str, Path],
    command: str,
    stop: StopSignal,
) -> None:
    """Train one run, or go on with it; of a finished one nothing is even loaded."""
    if (folder / "adapter").is_dir():
        found, record = settings_from_yaml(folder / "config.yaml"), read_record(folder)
        places = {task: str(path.resolve()) for task, path in data.items()}
        same = replace(found, features=settings.features) == settings and record["data"] == places
        if same and record["source_digest"] == cell.start.digest:
            return  # otherwise train_run says what differs
    training_run.train_run(
        settings=settings,
        data=data,
        features=features,
        output=folder,
        command=command,
        dry_run=False,
        stop=stop,
    )


def _evaluated(folder: Path, cell: Cell) -> Outcome:
    """The scores of a finished run, evaluated where that has not been done."""
    metrics = {}
    for split in ("validation", "test"):
        path = folder / "evaluation" / split / "metrics.json"
        if not path.is_file():
            inference.evaluate_run(folder, split, single=True)
        metrics[split] = json.loads(path.read_text())
    return Outcome(cell, **metrics)
