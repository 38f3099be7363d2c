"""Costs that the figures show: each measured once, in a process of its own, and kept in costs.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dept_vl import cost as costs
from dept_vl.command_line import StopSignal, say
from dept_vl.cost import Cost
from dept_vl.settings import Settings
from feature_extraction.durable import write_durably
from feature_extraction.errors import DamagedError, Interrupted

FILE = "costs.json"  # in the folder of the figures, which share it
WARMUP = 2  # steps


class Trial(NamedTuple):
    """What is measured: prompt tuning with l, or DePT with a shorter prompt and the largest rank that is left."""

    backbone: str  # as the figure calls it
    settings: Settings

    def with_prompt(self, length: int) -> Trial:
        """The same with another prompt length, at the parameters of prompt tuning with l."""
        longest = self.settings.method.budget_length
        name = "prompt" if length == longest else "dept"
        return self._replace(
            settings=replace(
                self.settings,
                method=replace(self.settings.method, name=name, prompt_length=min(length, longest), rank=None),
            )
        )


class Measurements:
    """Costs in a folder; what is there is not measured again."""

    def __init__(
        self,
        folder: Path,
        *,
        data: Mapping[str, Path] | None,
        features: Mapping[str, Path],
        steps: int,
        stop: StopSignal,
    ) -> None:
        self._folder, self._data, self._features, self._steps, self._stop = folder, data, features, steps, stop
        self._known: list[dict[str, Any]] = self._read()

    def cost(self, trial: Trial) -> Cost:
        """The cost of a trial, measured where that has not been done.

        Raises:
            Interrupted: a signal came before; what is measured is kept.
            Any error of ``dept_vl.cost.measure_apart``.
        """
        key = self._key(trial.settings)
        for entry in self._known:
            if entry["of"] == key and set(entry["cost"]) == set(Cost._fields):
                return Cost(**entry["cost"])
        if self._stop:
            raise Interrupted(f"{len(self._known)} costs are measured. The same command goes on with the next")
        method = trial.settings.method
        say(f"Measuring {trial.backbone}: {method.name}, m = {method.prompt_length}")
        found = costs.measure_apart(trial.settings, self._data, self._features, steps=self._steps, warmup=WARMUP)
        self._known = [entry for entry in self._known if entry["of"] != key]
        self._known.append({"of": key, "cost": found._asdict()})
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._folder / FILE, (json.dumps(self._known, indent=1) + "\n").encode())
        return found

    def _key(self, settings: Settings) -> dict[str, Any]:
        """Everything that a cost depends on, as JSON gives it back."""
        key = {
            "settings": asdict(settings),
            "data": None if self._data is None else {task: str(path.resolve()) for task, path in self._data.items()},
            "features": {task: str(path.resolve()) for task, path in self._features.items()},
            "steps": self._steps,
            "machine": machine(),
        }
        return dict(json.loads(json.dumps(key)))

    def _read(self) -> list[dict[str, Any]]:
        path = self._folder / FILE
        if not path.is_file():
            return []
        try:
            return list(json.loads(path.read_text()))
        except ValueError as error:
            raise DamagedError(f"{path} is not JSON ({error}). Delete it; the costs are measured again") from error


def machine() -> str:
    """The device that costs are measured on, and by which torch."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"a CPU, torch {torch.__version__} with {torch.get_num_threads()} thread(s)"
