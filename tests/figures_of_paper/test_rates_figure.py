"""Figure 5: pairs of rates with the means of their seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dept_vl.figures_of_paper.rates_figure import two_rates
from dept_vl.figures_of_paper.sweep_results import Run
from feature_extraction.errors import UsageError


@pytest.fixture
def runs(run_of: Callable[..., Run]) -> list[Run]:
    def run(prompt: str, low_rank: str, seed: int, score: float) -> Run:
        return run_of("sst2", "dept", seed, varied={"prompt_lr": prompt, "low_rank_lr": low_rank}, accuracy=score)

    pairs = {("0.3", "0.3"): 50.0, ("0.3", "0.003"): 70.0, ("0.003", "0.3"): 55.0, ("0.003", "0.003"): 60.0}
    return [run(*pair, seed, score + seed) for pair, score in pairs.items() for seed in (0, 2)]


def test_single_rates_come_first_and_all_have_their_means(runs: list[Run]) -> None:
    page = two_rates(runs, origin="Ours: toys.")
    assert [(row["prompt_lr"], row["low_rank_lr"], row["single"], row["mean"]) for row in page.rows] == [
        (0.3, 0.3, True, 51.0),
        (0.003, 0.003, True, 61.0),
        (0.3, 0.003, False, 71.0),
        (0.003, 0.3, False, 56.0),
    ]
    first = page.rows[0]
    assert (first["low"], first["high"], first["seeds"]) == (50.0, 52.0, 2)
    assert "| t5-mini | sst2 | accuracy | 0.3 | the same | 2 | 51.00 |" in page.table


def test_the_difference_is_said_and_that_both_are_chosen(runs: list[Run]) -> None:
    notes = two_rates(runs, origin="Ours: toys.").notes
    assert notes[0] == "Ours: toys."
    assert notes[1] == (
        "sst2 (t5-mini): best of two rates 71.00 (0.3 and 0.003), of one 61.00 (0.003 for both): +10.00. "
        "Both are the best of 2 and 2 tries, chosen on the test."
    )


def test_the_picture_has_every_pair(runs: list[Run]) -> None:
    picture = (two_rates(runs, origin="").picture or b"").decode()
    for text in ("0.3 for both", "0.3 and 0.003", "71.0", "sst2, accuracy (t5-mini)"):
        assert f"<!-- {text} -->" in picture


def test_of_one_seed_the_interval_is_over_the_examples(runs: list[Run]) -> None:
    one = [run._replace(test={**run.test, "ci_low": 40.0, "ci_high": 90.0}) for run in runs if run.seed == 0]
    page = two_rates(one, origin="")
    assert (page.rows[0]["low"], page.rows[0]["high"]) == (40.0, 90.0)
    assert page.notes[-1].endswith("bars: 95 % over the test examples, one seed.")


def test_failed_runs_are_left_out_and_counted(runs: list[Run], run_of: Callable[..., Run]) -> None:
    failed = run_of("sst2", "dept", 3, varied={"prompt_lr": "0.3", "low_rank_lr": "0.3"})
    page = two_rates([*runs, failed], origin="")
    assert page.rows[0]["seeds"] == 2
    assert page.unfinished == 1


@pytest.mark.parametrize("single", [True, False])
def test_one_kind_of_rates_alone_is_refused(runs: list[Run], single: bool) -> None:
    kind = [run for run in runs if (len(set(run.varied.values())) == 1) is single]
    with pytest.raises(
        UsageError, match="compares one rate for both groups with two, but the finished runs do not have"
    ):
        two_rates(kind, origin="")
