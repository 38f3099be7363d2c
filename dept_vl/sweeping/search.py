"""Learning rates by search: as many trials for every row, each an ordinary run that is scored on validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dept_vl.command_line import StopSignal, say
from dept_vl.sweeping.grid import Cell, Grid, Setup, flat_settings, settings_of
from dept_vl.sweeping.one_run import run_cell
from dept_vl.training.loss_log import read_log
from feature_extraction.differences import refuse_differences
from feature_extraction.durable import write_durably
from feature_extraction.errors import Interrupted, NumericalError, UsageError

# Where the rate of each group is looked for, log-uniformly: a factor of ten to either side of a published value.
RANGES = {
    "prompt": (0.03, 3.0),  # 0.3 of Lester et al. (2021) and of DePT's published runs, which have 0.3 and 0.4
    "low_rank": (1e-4, 1e-2),  # DePT's published runs have 1e-4 to 5e-3
    "visual": (1e-4, 1e-2),  # 1e-3 of VL-Adapter, whose one rate is for all that trains
    "head": (1e-4, 1e-2),  # 1e-3, as for the visual embedding
    "adapter": (1e-4, 1e-2),  # VL-Adapter has 1e-3 for adapters and LoRA, LST 3e-4 and, of the ladder, 3e-3
    "backbone": (1e-5, 1e-3),  # 1e-4 of VL-Adapter's full fine-tuning
}
FILE = "trials.json"
RANDOM_TRIALS = 5  # before the sampler models what it has seen


class Trial(NamedTuple):
    """One try: the rate of each group, and the best validation score of its run."""

    rates: dict[str, float]
    score: float | None  # None: the run came to numbers that are not finite
    reason: str = ""  # of that


def search_rates(
    grid: Grid, row: Setup, place: Path, *, trials: int, stop: StopSignal, launcher: str | None = None
) -> None:
    """Make ``trials`` trials with the first seed, in ``place``.

    The first trial has the row's own rates, and its log names the groups that train. What has been tried is not tried
    again: the search is a function of the trials so far, so one that was stopped goes on as if it had not been.

    Raises:
        UsageError: optuna is not installed, or no trial has a score.
        IncompatibleError: the place holds a search with other settings.
        Interrupted: a signal came.
    """
    own, done = _own_settings(grid, row), trials_of(grid, row, place)[:trials]
    for number in range(len(done), trials):
        if stop:
            raise Interrupted(f"{number} of {trials} trials of {row.folder} are done. The same command goes on")
        rates = suggest_rates(done, number) if number else {}
        say(f"Trial {number + 1} of {trials} of {row.folder}: {_text(rates)}")
        trial = _run_trial(grid, row, rates, place / f"trial{number}", stop, launcher)
        done.append(trial)
        record = {"settings": own, "trials": [one._asdict() for one in done]}
        write_durably(place / FILE, (json.dumps(record, indent=1) + "\n").encode())
    if all(trial.score is None for trial in done):
        raise UsageError(f"No trial of {row.folder} has a score: {done[-1].reason}. Give lower rates to start from")


def read_trials(place: Path) -> list[Trial]:
    """What has been tried so far."""
    path = place / FILE
    return [Trial(**one) for one in json.loads(path.read_text())["trials"]] if path.is_file() else []


def trials_of(grid: Grid, row: Setup, place: Path) -> list[Trial]:
    """What has been tried so far for a row.

    Raises:
        IncompatibleError: the trials are those of other settings.
    """
    path = place / FILE
    if path.is_file():
        refuse_differences(
            json.loads(path.read_text())["settings"],
            _own_settings(grid, row),
            what=f"{place} is a search with other settings (expected: its own; got: this command's)",
            advice="Give another --output, or the settings of that search to go on with it",
        )
    return read_trials(place)


def best_rates(trials: Sequence[Trial]) -> dict[str, str]:
    """The settings of the trial with the highest score, the first of equal ones; one at least has a score."""
    best = max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score or 0.0)
    return {f"optimizer.{group}_lr": f"{rate:g}" for group, rate in best.rates.items()}


def load_optuna() -> ModuleType:
    """The engine of the search.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"--search needs optuna, which cannot be imported ({error}). Run: pip install 'dept_vl[sweep]'"
        ) from error
    return optuna


def suggest_rates(trials: Sequence[Trial], number: int) -> dict[str, float]:
    """What to try next, from all that was tried: equal for equal trials, whatever process they were run in."""
    optuna = load_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    groups = list(trials[0].rates)
    space: dict[str, Any] = {
        group: optuna.distributions.FloatDistribution(*RANGES[group], log=True) for group in groups
    }
    sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=RANDOM_TRIALS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        # The defaults may lie outside of the ranges, at whose ends they then count.
        inside = {group: min(max(trial.rates[group], space[group].low), space[group].high) for group in groups}
        state = optuna.trial.TrialState.COMPLETE if trial.score is not None else optuna.trial.TrialState.FAIL
        study.add_trial(optuna.trial.create_trial(params=inside, distributions=space, value=trial.score, state=state))
    # Three digits are exact enough for a rate, and the setting stays one that can be typed.
    return {group: float(f"{rate:.3g}") for group, rate in study.ask(space).params.items()}


def _own_settings(grid: Grid, row: Setup) -> dict[str, Any]:
    return flat_settings(settings_of(grid, Cell(row, grid.seeds[0])))


def _run_trial(
    grid: Grid, row: Setup, rates: Mapping[str, float], place: Path, stop: StopSignal, launcher: str | None
) -> Trial:
    chosen = {f"optimizer.{group}_lr": f"{rate:g}" for group, rate in rates.items()}
    cell = Cell(row.with_settings(chosen), grid.seeds[0])
    settings, reason = settings_of(grid, cell), ""
    try:
        run_cell(grid, cell, place, stop=stop, launcher=launcher, splits=())
    except NumericalError as error:
        reason = " ".join(str(error).split())
    log = read_log(place / "log.jsonl")
    groups = [group for record in log[:1] for group in record["update_norm"]]  # that train
    if not groups:
        raise UsageError(f"The first trial of {row.folder} ended before its first step: {reason}. Give lower rates")
    scores = [record["validation"][settings.task.selection_metric] for record in log if "validation" in record]
    tried = dict(rates) or {group: getattr(settings.optimizer, f"{group}_lr") for group in groups}
    return Trial(tried, None if reason else max(scores), reason)


def _text(rates: Mapping[str, float]) -> str:
    return " ".join(f"optimizer.{group}_lr={rate:g}" for group, rate in rates.items()) or "the rates of the settings"
