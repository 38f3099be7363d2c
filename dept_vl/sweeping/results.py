"""What a sweep found: each method on each task over its seeds, compared with a reference."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dept_vl.sweeping.grid import BEYOND_BUDGET, Setup, check_reference
from dept_vl.sweeping.outcome import DONE, NOT_POSSIBLE, Outcome
from dept_vl.sweeping.statistics import (
    NO_INTERVAL,
    Interval,
    example_interval,
    holm,
    is_mean,
    permutation_p,
    seed_interval,
)

if TYPE_CHECKING:
    from dept_vl.cost import Cost


class Trained(NamedTuple):
    """How many parameters a run has trained."""

    own: int
    visual: int
    heads: int


class Entry(NamedTuple):
    """One method on one task: a row of table.csv, and a field of the other tables."""

    setup: Setup
    metric: str
    seeds: tuple[int, ...]  # that have ended
    missing: int  # seeds that have not
    note: str  # why some or all have not
    validation: float | None  # mean over the seeds
    test: float | None
    interval: Interval  # of the mean on the test
    trained: Trained | None
    cost: Cost | None
    p: float | None = None  # of the difference from the reference; None for the reference itself
    p_over: str = ""  # what was paired: examples or seeds
    p_holm: float | None = None  # corrected for all comparisons on the task

    @property
    def significant(self) -> bool:
        """Whether it differs from the reference, with all comparisons of the task counted."""
        return self.p_holm is not None and self.p_holm < 0.05


class Table(NamedTuple):
    """All entries, in the order of the grid."""

    entries: tuple[Entry, ...]
    reference: str | None  # the label of the row that others are compared with
    budget: int | None  # which rows of BEYOND_BUDGET are not bound by

    def rows(self) -> list[tuple[str, str]]:
        """Backbone and label of each row."""
        return list(dict.fromkeys((entry.setup.backbone, entry.setup.label) for entry in self.entries))

    def tasks(self) -> list[str]:
        """The columns."""
        return list(dict.fromkeys(entry.setup.task for entry in self.entries))

    def find(self, row: tuple[str, str], task: str) -> Entry | None:
        """The entry of a row and a column."""
        mine = [entry for entry in self.entries if (entry.setup.backbone, entry.setup.label) == row]
        return next((entry for entry in mine if entry.setup.task == task), None)

    def beyond_budget(self, setup: Setup) -> bool:
        """Whether a row stands there to measure others by, and is not bound by the budget."""
        return self.budget is not None and setup.method in BEYOND_BUDGET


def summarise(outcomes: Sequence[Outcome], *, reference: str | None = None, budget: int | None = None) -> Table:
    """The means over the seeds, their intervals, and the comparisons with the reference.

    Args:
        reference: a method, or a whole label where values are varied; None: dept, where the sweep has it.

    Raises:
        UsageError: the sweep has no such row.
    """
    groups: dict[Setup, list[Outcome]] = {}
    for outcome in outcomes:
        setup = outcome.cell.setup
        groups.setdefault(setup._replace(overrides=()), []).append(outcome)
    if reference is None and any(setup.method == "dept" for setup in groups):
        reference = "dept"
    if reference is not None:
        check_reference(reference, list(groups))
    entries = [_entry(group) for group in groups.values()]
    return Table(tuple(_compared(entries, groups, reference)), reference, budget)


def read_per_example(outcome: Outcome) -> dict[str, float]:
    """The score of each test example, 0 to 1; nothing where the task has none."""
    if not outcome.per_example.is_file():
        return {}
    scores: dict[str, float] = json.loads(outcome.per_example.read_text())
    return scores


def trained_parameters(run: Path) -> Trained | None:
    """What a run has trained, counted in the file of its adapter; None before it has one."""
    path = run / "adapter" / "adapter_model.safetensors"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = {"visual_embedding": 0, "heads": 0, "own": 0}
    for name, tensor in header.items():
        if name == "__metadata__" or name.endswith("trained_length"):  # a count, which is not trained
            continue
        part = name.partition(".")[0]
        size = 1
        for length in tensor["shape"]:
            size *= length
        sizes[part if part in sizes else "own"] += size
    return Trained(sizes["own"], sizes["visual_embedding"], sizes["heads"])


def _entry(group: Sequence[Outcome]) -> Entry:
    done = [outcome for outcome in group if outcome.state == DONE]
    first = group[0]
    test, interval = _mean(done, "test"), NO_INTERVAL
    scores = [outcome.test[outcome.metric] for outcome in done]
    if test is not None and len(done) > 1:
        interval = seed_interval([score for score in scores if score is not None])
    elif test is not None:
        interval = example_interval(test, read_per_example(done[0]))
    notes = {f"{one.state}: {one.reason}" if one.reason else one.state for one in group if one.state != DONE}
    return Entry(
        setup=first.cell.setup._replace(overrides=()),
        metric=next((outcome.metric for outcome in group if outcome.metric), ""),
        seeds=tuple(outcome.cell.seed for outcome in done),
        missing=0 if first.state == NOT_POSSIBLE else len(group) - len(done),
        note="; ".join(sorted(notes)),
        validation=_mean(done, "validation"),
        test=test,
        interval=interval,
        trained=next(filter(None, (trained_parameters(outcome.folder) for outcome in done)), None),
        cost=first.cost,
    )


def _mean(done: Sequence[Outcome], split: str) -> float | None:
    """The mean of the selection metric; None where a run has none."""
    scores = [getattr(outcome, split).get(outcome.metric) for outcome in done]
    return statistics.fmean(scores) if scores and None not in scores else None


def _compared(
    entries: Sequence[Entry], groups: Mapping[Setup, Sequence[Outcome]], reference: str | None
) -> list[Entry]:
    """The entries with their p-values, corrected over all that are compared on one task and backbone."""
    compared = {entry.setup: entry for entry in entries}
    for place in dict.fromkeys((setup.backbone, setup.task) for setup in groups):
        beside = [setup for setup in groups if (setup.backbone, setup.task) == place]
        rivals = [setup for setup in beside if reference in (setup.method, setup.label)]
        found: dict[Setup, tuple[float, str]] = {}
        for setup in beside:
            # One with the same values, where values are varied for all methods; or else the first.
            rival = next((one for one in rivals if one.varied == setup.varied), rivals[0] if rivals else None)
            if rival is not None and rival != setup:
                result = _paired_test(groups[setup], groups[rival])
                if result is not None:
                    found[setup] = result
        corrected = holm([p for p, _ in found.values()])
        for (setup, (p, over)), p_holm in zip(found.items(), corrected, strict=True):
            compared[setup] = compared[setup]._replace(p=p, p_over=over, p_holm=p_holm)
    return list(compared.values())


def _paired_test(one: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[float, str] | None:
    """The p-value of the seeds that both have, and what was paired; None where nothing can be."""
    theirs = {outcome.cell.seed: outcome for outcome in other if outcome.state == DONE}
    pairs = [(mine, theirs[mine.cell.seed]) for mine in one if mine.state == DONE and mine.cell.seed in theirs]
    scores = [(mine.test.get(mine.metric), rival.test.get(rival.metric)) for mine, rival in pairs]
    if not pairs or any(None in pair for pair in scores):
        return None
    totals: dict[str, float] = {}
    fits = True
    for (mine, rival), (own, its) in zip(pairs, scores, strict=True):
        left, right = read_per_example(mine), read_per_example(rival)
        fits = fits and is_mean(own, left) and is_mean(its, right) and left.keys() == right.keys()
        if not fits:
            break
        for example_id, score in left.items():
            totals[example_id] = totals.get(example_id, 0.0) + score - right[example_id]
    if fits:
        return permutation_p([round(total, 9) for total in totals.values()]), "examples"
    if len(pairs) < 2:
        return None
    return permutation_p([own - its for own, its in scores if own is not None and its is not None]), "seeds"
