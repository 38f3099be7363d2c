"""The paper's figures of cost: time and memory against m, speed against (m, r), and what DePT saves on larger models.

All are at equal budget: DePT has a prompt of m and the largest rank that the parameters of prompt tuning with l leave.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from dept_vl.cost import Cost
from dept_vl.figures_of_paper.drawing import Curve, Panel, draw_curves, draw_groups
from dept_vl.figures_of_paper.measurements import Measurements, Trial, machine
from dept_vl.figures_of_paper.page import Page, markdown_table
from dept_vl.settings import Settings

MEAN = "mean of the backbones"


class Point(NamedTuple):
    """The cost of a prompt length on a backbone, beside that of prompt tuning with l."""

    backbone: str
    length: int  # m
    cost: Cost
    reference: Cost

    @property
    def time(self) -> float:
        """Of a training step, relative to prompt tuning."""
        return self.cost.step_seconds / self.reference.step_seconds

    @property
    def memory(self) -> float:
        """The peak, relative to prompt tuning."""
        return self.cost.peak_memory_bytes / self.reference.peak_memory_bytes

    @property
    def speed(self) -> float:
        """Examples answered per second, relative to prompt tuning."""
        return self.cost.examples_per_second / self.reference.examples_per_second

    @property
    def parameters(self) -> int:
        """Of the backbone."""
        return self.reference.total - self.reference.own - self.reference.visual - self.reference.heads


def measure_points(
    trials: Sequence[Trial], lengths: Sequence[int], measurements: Measurements
) -> dict[str, list[Point]]:
    """The points of each backbone, by rising m; prompt tuning with l is the last."""
    points = {}
    for trial in trials:
        longest = trial.settings.method.budget_length
        reference = measurements.cost(trial.with_prompt(longest))
        points[trial.backbone] = [
            Point(trial.backbone, length, measurements.cost(trial.with_prompt(length)), reference)
            for length in sorted({*lengths, longest})
        ]
    return points


def time_and_memory(points: dict[str, list[Point]], settings: Settings) -> Page:
    """Figure 3: training time and peak memory against m."""
    longest = settings.method.budget_length
    times, memories = [], []
    for backbone, mine in points.items():
        x = [point.length for point in mine]
        seconds = [point.reference.step_seconds for point in mine]
        low = [point.cost.step_seconds_low / one for point, one in zip(mine, seconds, strict=True)]
        high = [point.cost.step_seconds_high / one for point, one in zip(mine, seconds, strict=True)]
        times.append(Curve(backbone, x, [point.time for point in mine], low, high))
        memories.append(Curve(backbone, x, [point.memory for point in mine]))
    if len(points) > 1:
        times.append(_mean(times))
        memories.append(_mean(memories))
    x_label, relative = f"m (m = {longest}: prompt tuning)", f"relative to m = {longest}"
    picture = draw_curves(
        [
            Panel("Training time", x_label, relative, times, level=1),
            Panel("Peak memory", x_label, relative, memories, level=1),
        ],
        note=_short_note(points, settings),
    )
    return Page(
        title="Training time and memory against m, at equal parameters (the paper's figure 3)",
        rows=_rows(points),
        table=_table(points),
        notes=[
            *_notes(points, settings),
            "Bars: the quickest and the slowest of four parts of the timed steps.",
            *([f"Thick: {MEAN}, as in the paper."] if len(points) > 1 else []),
        ],
        picture=picture,
    )


def inference_speed(points: dict[str, list[Point]], settings: Settings) -> Page:
    """Figure 4: inference speed against (m, r)."""
    longest = settings.method.budget_length
    first = next(iter(points.values()))
    groups = []
    for number, point in enumerate(first):
        ranks = sorted({mine[number].cost.rank or 0 for mine in points.values()})
        text = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        groups.append(f"m = {point.length}\n" + ("prompt tuning" if point.length == longest else f"r = {text}"))
    bars = {backbone: [point.speed for point in mine] for backbone, mine in points.items()}
    if len(points) > 1:
        bars[MEAN] = [statistics.fmean(values) for values in zip(*bars.values(), strict=True)]
    picture = draw_groups(
        groups, bars, title="Inference", y_label=f"speed relative to m = {longest}", note=_short_note(points, settings)
    )
    return Page(
        title="Inference speed against m and r, at equal parameters (the paper's figure 4)",
        rows=_rows(points),
        table=_table(points),
        notes=[
            *_notes(points, settings),
            "Speed: examples answered per second, in batches, relative to prompt tuning.",
        ],
        picture=picture,
    )


def model_size(points: dict[str, list[Point]], settings: Settings) -> Page:
    """What DePT saves in time and memory, against the size of the backbone."""
    ordered = sorted(points.values(), key=lambda mine: mine[0].parameters)
    shortest = [mine[0] for mine in ordered]
    groups = [f"{point.backbone}\n{millions(point.parameters)}" for point in shortest]
    bars = {
        "training time": [100 * (1 - point.time) for point in shortest],
        "peak memory": [100 * (1 - point.memory) for point in shortest],
    }
    length, longest = shortest[0].length, settings.method.budget_length
    picture = draw_groups(
        groups,
        bars,
        title=f"Saved by DePT, m = {length}, l = {longest}",
        y_label="saved, %",
        note=_short_note(points, settings),
        level=0,
        digits=0,
    )
    return Page(
        title="What DePT saves over prompt tuning, against the backbone's size",
        rows=_rows(points),
        table=_table(points),
        notes=[*_notes(points, settings), "Saved: 1 - DePT / prompt tuning. Parameters: the backbone's own."],
        picture=picture,
    )


def millions(count: int) -> str:
    """A count of parameters as people say it."""
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _mean(curves: Sequence[Curve]) -> Curve:
    means = [statistics.fmean(values) for values in zip(*(curve.y for curve in curves), strict=True)]
    return Curve(MEAN, curves[0].x, means, strong=True)


def _rows(points: dict[str, list[Point]]) -> list[dict[str, Any]]:
    return [
        {
            "backbone": point.backbone,
            "backbone_parameters": point.parameters,
            "m": point.length,
            "r": point.cost.rank,
            "relative_time": point.time,
            "relative_memory": point.memory,
            "relative_speed": point.speed,
            **point.cost._asdict(),
        }
        for mine in points.values()
        for point in mine
    ]


def _table(points: dict[str, list[Point]]) -> str:
    head = ["backbone", "m", "r", "trained of its own", "step, ms", "time", "peak, MB", "memory"]
    head += ["one answer, ms", "examples per s", "speed"]
    rows = []
    for point in (point for mine in points.values() for point in mine):
        cost = point.cost
        rows.append(
            [
                *(point.backbone, str(point.length), "" if cost.rank is None else str(cost.rank), f"{cost.own:,}"),
                *(f"{1000 * cost.step_seconds:,.0f}", f"{point.time:.2f}"),
                *(f"{cost.peak_memory_bytes / 1e6:,.0f}", f"{point.memory:.2f}"),
                *(f"{1000 * cost.latency_seconds:,.0f}", f"{cost.examples_per_second:,.1f}", f"{point.speed:.2f}"),
            ]
        )
    return markdown_table(head, rows)


def _notes(points: dict[str, list[Point]], settings: Settings) -> list[str]:
    cost, task = next(iter(points.values()))[0].cost, settings.task
    where = (
        f"made-up examples of {task.name}, every text as long as its limit"
        if cost.synthetic
        else f"the examples of {task.name}"
    )
    images = f" and {task.images_per_example} image(s)" if task.images_per_example else ""
    memory = (
        "what torch has allocated on the GPU"
        if cost.device != "cpu"
        else "the process's resident set, in which Python, its libraries and the weights take a part that never shrinks"
    )
    return [
        f"Measured on {machine()}; batches of {settings.data.batch_size} in training and "
        f"{settings.data.evaluation_batch_size} in inference, {settings.training.precision}.",
        f"Data: {where}; at most {task.max_text_length} text tokens{images}, {task.max_target_length} target tokens.",
        f"time, memory and speed are relative to prompt tuning with l = {settings.method.budget_length}, the last row "
        "of each backbone; DePT has the largest useful r that no more parameters allow.",
        f"Memory is the peak of training: {memory}.",
    ]


def _short_note(points: dict[str, list[Point]], settings: Settings) -> str:
    """The line below the picture."""
    cost, task = next(iter(points.values()))[0].cost, settings.task
    data = "made-up full-length batches" if cost.synthetic else "its own texts"
    lengths = f"{task.name}, {data}, {task.max_text_length} text tokens at most"
    return f"Ours: {cost.device}, {settings.training.precision}, batch {settings.data.batch_size}; {lengths}"
