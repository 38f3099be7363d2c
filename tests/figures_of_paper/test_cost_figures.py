"""Figures of cost: every number relative to prompt tuning on the same backbone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dept_vl.config import load_settings
from dept_vl.cost import Cost
from dept_vl.figures_of_paper.cost_figures import Point, inference_speed, millions, model_size, time_and_memory
from dept_vl.figures_of_paper.measurements import Trial
from dept_vl.settings import Settings


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings({"task": "sst2"}, ["data.batch_size=16", "data.evaluation_batch_size=8"])


@pytest.fixture(scope="module")
def points(settings: Settings, cost_of: Callable[..., Cost]) -> dict[str, list[Point]]:
    """Two backbones, the larger first."""

    def cost(length: int, total: int) -> Cost:
        return cost_of(Trial("", settings).with_prompt(length).settings, total=total)

    return {
        name: [Point(name, length, cost(length, total), cost(100, total)) for length in (0, 40, 100)]
        for name, total in (("base", 220_000_000), ("mini", 13_000_000))
    }


def test_time_memory_and_speed_are_relative_to_prompt_tuning(points: dict[str, list[Point]]) -> None:
    zero, forty, hundred = points["mini"]
    assert (zero.time, zero.memory, zero.speed) == pytest.approx((0.5, 0.9, 2.0))
    assert (forty.time, forty.memory) == pytest.approx((0.7, 0.94))
    assert (hundred.time, hundred.memory, hundred.speed) == (1.0, 1.0, 1.0)
    assert zero.parameters == 13_000_000


def test_figure_3_has_a_curve_of_each_backbone_and_their_mean(
    points: dict[str, list[Point]], settings: Settings
) -> None:
    page = time_and_memory(points, settings)
    for text in ("Training time", "Peak memory", "base", "mini", "mean of the backbones", "relative to m = 100"):
        assert f"<!-- {text} -->" in (page.picture or b"").decode()
    alone = time_and_memory({"mini": points["mini"]}, settings)
    assert "mean of the backbones" not in (alone.picture or b"").decode()


def test_the_csv_has_what_was_measured(points: dict[str, list[Point]], settings: Settings) -> None:
    rows = time_and_memory(points, settings).rows
    assert [(row["backbone"], row["m"], row["r"]) for row in rows[3:]] == [
        ("mini", 0, 100),
        ("mini", 40, 60),
        ("mini", 100, None),
    ]
    for row, point in zip(rows, [*points["base"], *points["mini"]], strict=True):
        assert {name: row[name] for name in Cost._fields} == point.cost._asdict()
        assert (row["relative_time"], row["relative_memory"]) == (point.time, point.memory)


def test_what_was_measured_is_said(points: dict[str, list[Point]], settings: Settings) -> None:
    page = time_and_memory(points, settings)
    notes = " ".join(page.notes)
    for text in ("batches of 16 in training and 8 in inference, fp32", "made-up examples of sst2", "256 text tokens"):
        assert text in notes
    assert "made-up full-length batches" in (page.picture or b"").decode()
    assert "the process's resident set" in notes


def test_on_a_gpu_memory_is_what_torch_allocates(points: dict[str, list[Point]], settings: Settings) -> None:
    there = [point._replace(cost=point.cost._replace(device="H100", synthetic=False)) for point in points["mini"]]
    page = inference_speed({"mini": there}, settings)
    assert "Memory is the peak of training: what torch has allocated on the GPU." in page.notes
    assert any("Data: the examples of sst2" in note for note in page.notes)


def test_figure_4_names_m_and_r(points: dict[str, list[Point]], settings: Settings) -> None:
    picture = (inference_speed(points, settings).picture or b"").decode()
    for text in ("m = 0", "r = 100", "m = 100", "prompt tuning", "2.00", "mean of the backbones"):
        assert f"<!-- {text} -->" in picture


def test_ranks_that_differ_are_a_range(points: dict[str, list[Point]], settings: Settings) -> None:
    other = [point._replace(cost=point.cost._replace(rank=1)) for point in points["mini"]]
    assert "<!-- r = 1 to 60 -->" in (inference_speed({**points, "mini": other}, settings).picture or b"").decode()


def test_model_sizes_rise_to_the_right(points: dict[str, list[Point]], settings: Settings) -> None:
    page = model_size({name: mine[1:] for name, mine in points.items()}, settings)
    picture = (page.picture or b"").decode()
    assert picture.index("<!-- 13.0 M -->") < picture.index("<!-- 220.0 M -->")
    assert "<!-- 30 -->" in picture  # per cent of the time
    assert "Saved by DePT, m = 40, l = 100" in picture


def test_equal_numbers_give_an_equal_file(points: dict[str, list[Point]], settings: Settings) -> None:
    for figure in (time_and_memory, inference_speed):
        assert figure(points, settings).picture == figure(points, settings).picture


def test_counts_of_parameters_are_short() -> None:
    assert [millions(count) for count in (2_850_000_000, 13_115_904, 512)] == ["2.9 G", "13.1 M", "512"]
