"""The paper's few-shot comparison: tasks with few examples, from scratch and from trained sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dept_vl.command_line import StopSignal, say
from dept_vl.figures_of_paper.drawing import Curve, Panel, draw_curves
from dept_vl.figures_of_paper.literature import literature
from dept_vl.figures_of_paper.page import Page, markdown_table
from dept_vl.model.adapter import load_adapter
from dept_vl.model.transfer import find_adapter
from dept_vl.settings import Settings
from dept_vl.transfer_results import SCRATCH, Row, Start, compare, write_results
from dept_vl.transfer_runs import run_transfer, source_starts
from feature_extraction.errors import UsageError


class FewShot(NamedTuple):
    """What a transfer to a task has found with one method."""

    task: str
    method: str
    metric: str
    rows: Sequence[Row]


def run_few_shot(
    settings: Mapping[tuple[str, str], Settings],
    sources: Mapping[str, Path],
    *,
    modes: Sequence[str],
    shots: Sequence[int],
    seeds: int,
    folder: Path,
    data: Mapping[str, Path],
    features: Mapping[str, Path],
    command: str,
    stop: StopSignal,
) -> list[FewShot]:
    """Train every task with every method, from scratch and from the sources that were trained by it.

    Args:
        settings: of each task and method.
        folder: of the runs; those of a task and method lie in ``folder/TASK/METHOD``, as dept_vl.transfer leaves them.

    Raises:
        UsageError: a source's method is not among those asked for.
        Interrupted: a signal came; the same call goes on.
    """
    methods = list(dict.fromkeys(method for _, method in settings))
    own: dict[str, dict[str, Path]] = {method: {} for method in methods}
    for name, path in sources.items():
        method = str(load_adapter(find_adapter(path)).settings["method"]["name"])
        if method not in own:
            raise UsageError(
                f"--sources: {path} was trained by {method}, but --methods has {', '.join(methods)}. Name {method} "
                "there too, or leave this source out"
            )
        own[method][name] = path
    found = []
    for (task, method), one in settings.items():
        starts = [Start(SCRATCH), *source_starts(own[method], modes)]
        place, stores = folder / task / method, {task: features[task]} if task in features else {}
        say(f"{task}, {method}:")
        outcomes = run_transfer(
            one,
            starts,
            shots=shots,
            seeds=seeds,
            folder=place,
            data={task: data[task]},
            features=stores,
            command=command,
            stop=stop,
        )
        metric = one.task.selection_metric
        write_results(place, outcomes, task=task, metric=metric, sources=own[method])
        found.append(FewShot(task, method, metric, compare(outcomes, metric)))
    return found


def few_shot(found: Sequence[FewShot], *, data: Mapping[str, Path], backbone: str) -> Page:
    """Test scores against the number of examples, for every method and source."""
    panels = []
    for task in dict.fromkeys(one.task for one in found):
        mine = [one for one in found if one.task == task]
        panels.append(Panel(task, "training examples", f"test {mine[0].metric}", _curves(mine)))
    cells = [
        [
            *(
                one.task,
                one.metric,
                str(row.shots),
                one.method,
                _source(row),
                f"ours ({backbone}, {row.seeds} seed(s))",
            ),
            *(_text(row.test_mean, row.test_std), "yes" if row.chosen else ""),
        ]
        for one in found
        for row in one.rows
    ]
    for report in literature("few-shot"):
        cells += [
            [one, "", "", report.label, "", report.of, "", ""] for one in dict.fromkeys(one.task for one in found)
        ]
    note = f"Ours: {backbone}; mean and standard deviation over the seeds"
    places = ", ".join(f"{task}: {path}" for task, path in data.items())
    return Page(
        title="Few examples: from scratch and from trained sources",
        rows=[
            {"task": one.task, "metric": one.metric, "method": one.method, **row._asdict()}
            for one in found
            for row in one.rows
        ],
        table=markdown_table(
            ["task", "metric", "examples", "method", "from", "whose", "test", "chosen by validation"], cells
        ),
        notes=[
            f"Data: {places}. Backbone: {backbone}.",
            "Mean ± standard deviation over the seeds, which draw the examples; all starts of one seed and number see "
            "the same ones.",
            "An empty cell: theirs is not confirmed, since the number was not read at its source.",
        ],
        picture=draw_curves(panels, note=note) if any(panel.curves for panel in panels) else None,
    )


def _curves(found: Sequence[FewShot]) -> list[Curve]:
    curves = []
    for one in found:
        starts = dict.fromkeys((row.source, row.parts) for row in one.rows)
        for start in starts:
            rows = sorted(row for row in one.rows if (row.source, row.parts) == start and row.test_mean is not None)
            points = [(row.shots, row.test_mean, row.test_std or 0.0) for row in rows if row.test_mean is not None]
            if points:
                shots, means, spreads = zip(*points, strict=True)
                low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
                high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
                curves.append(Curve(f"{one.method}, {_source(rows[0])}", shots, means, low, high))
    return curves


def _source(row: Row) -> str:
    return f"from {row.source} ({row.parts})" if row.parts else row.source


def _text(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
