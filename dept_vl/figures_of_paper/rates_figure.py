"""The paper's figure 5: two learning rates, of P and of A and B, against one for both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dept_vl.figures_of_paper.drawing import Bar, draw_bars
from dept_vl.figures_of_paper.page import Page, markdown_table
from dept_vl.figures_of_paper.sweep_results import Run
from dept_vl.sweeping.outcome import FAILED, MISSING
from feature_extraction.errors import UsageError

RATES = ("prompt_lr", "low_rank_lr")  # as the sweep calls what it varies


class Rates(NamedTuple):
    """What a pair of rates has reached on a task."""

    backbone: str
    task: str
    prompt_lr: float
    low_rank_lr: float
    scores: tuple[float, ...]  # of the seeds
    metric: str
    low: float | None  # of one seed, over the examples; of several, the lowest and the highest
    high: float | None

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def single(self) -> bool:
        """Whether both groups have the same rate."""
        return self.prompt_lr == self.low_rank_lr

    @property
    def label(self) -> str:
        """As a person reads it."""
        return f"{self.prompt_lr:g} for both" if self.single else f"{self.prompt_lr:g} and {self.low_rank_lr:g}"


def two_rates(runs: Sequence[Run], *, origin: str) -> Page:
    """Figure 5 from the runs of DePT in a sweep over both rates.

    Args:
        origin: where the runs are from, for the reader.

    Raises:
        UsageError: the runs do not have both kinds of rates.
    """
    groups: dict[tuple[str, str, float, float], list[Run]] = {}
    for run in runs:
        if run.method == "dept" and all(name in run.varied for name in RATES) and run.score is not None:
            pair = (float(run.varied["prompt_lr"]), float(run.varied["low_rank_lr"]))
            groups.setdefault((run.backbone, run.task, *pair), []).append(run)
    found = [_rates(group) for group in groups.values()]
    if not {True, False} <= {one.single for one in found}:
        raise UsageError(
            "Figure 5 compares one rate for both groups with two, but the finished runs do not have both. Give --rates "
            "two values or more; a sweep needs optimizer.prompt_lr and optimizer.low_rank_lr with the same values"
        )
    places = list(dict.fromkeys((one.backbone, one.task) for one in found))
    found.sort(key=lambda one: (places.index(one[:2]), not one.single, -one.prompt_lr, -one.low_rank_lr))
    panels = {}
    for place in places:
        mine = [one for one in found if (one.backbone, one.task) == place]
        bars = [Bar(one.label, one.mean, f"{one.mean:.1f}", one.low, one.high, strong=not one.single) for one in mine]
        panels[f"{place[1]}, {mine[0].metric} ({place[0]})"] = bars
    several = any(len(one.scores) > 1 for one in found)
    bar = "bars: the lowest and the highest seed" if several else "bars: 95 % over the test examples, one seed"
    return Page(
        title="Two learning rates against one (the paper's figure 5)",
        rows=[
            {
                "backbone": one.backbone,
                "task": one.task,
                "metric": one.metric,
                "prompt_lr": one.prompt_lr,
                "low_rank_lr": one.low_rank_lr,
                "single": one.single,
                "seeds": len(one.scores),
                "mean": one.mean,
                "low": one.low,
                "high": one.high,
            }
            for one in found
        ],
        table=markdown_table(
            ["backbone", "task", "metric", "rate of P", "rate of A, B", "seeds", "test"],
            [
                [
                    *(one.backbone, one.task, one.metric, f"{one.prompt_lr:g}"),
                    *("the same" if one.single else f"{one.low_rank_lr:g}", str(len(one.scores)), f"{one.mean:.2f}"),
                ]
                for one in found
            ],
        ),
        notes=[origin, *_best(found), f"Dark: two rates; pale: one for both; {bar}."],
        picture=draw_bars(
            panels, x_label="test score", note=f"Ours. Rates of P and of A, B: two (dark), one (pale); {bar}"
        ),
        unfinished=sum(run.state in (FAILED, MISSING) for run in runs),
    )


def _rates(group: Sequence[Run]) -> Rates:
    first = group[0]
    scores = tuple(run.score for run in group if run.score is not None)
    low, high = (min(scores), max(scores)) if len(scores) > 1 else (first.low, first.high)
    rates = (float(first.varied["prompt_lr"]), float(first.varied["low_rank_lr"]))
    return Rates(first.backbone, first.task, *rates, scores, first.metric, low, high)


def _best(found: Sequence[Rates]) -> list[str]:
    """For each task by how much the best two rates are better than the best one."""
    lines = []
    for backbone, task in dict.fromkeys((one.backbone, one.task) for one in found):
        mine = [one for one in found if (one.backbone, one.task) == (backbone, task)]
        kinds = [[one for one in mine if one.single is single] for single in (True, False)]
        if all(kinds):
            single, mixed = (max(kind, key=lambda one: one.mean) for kind in kinds)
            lines.append(
                f"{task} ({backbone}): best of two rates {mixed.mean:.2f} ({mixed.label}), of one {single.mean:.2f} "
                f"({single.label}): {mixed.mean - single.mean:+.2f}. Both are the best of {len(kinds[1])} and "
                f"{len(kinds[0])} tries, chosen on the test."
            )
    return lines
