"""Means, comparisons and tables of made-up outcomes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dept_vl.cost import Cost
from dept_vl.sweeping.grid import Cell, Setup
from dept_vl.sweeping.outcome import DONE, FAILED, MISSING, NOT_POSSIBLE, Outcome
from dept_vl.sweeping.plots import draw_all
from dept_vl.sweeping.results import Table, Trained, summarise, trained_parameters
from dept_vl.sweeping.search import Trial
from dept_vl.sweeping.tables import latex, legend, runs_csv, table_csv, to_latex, to_markdown, trials_csv
from feature_extraction.errors import UsageError

EXAMPLES = 40


def outcome(folder: Path, method: str, seed: int, right: int | None, *, task: str = "rte", **changes: Any) -> Outcome:
    """A run that has so many of the examples right; its first ones."""
    setup = Setup("t5-mini", task, method, varied=changes.pop("varied", ()))
    place = folder / task / setup.label.replace(" ", "-") / str(seed)
    metrics = {"accuracy": None if right is None else 100 * right / EXAMPLES}
    made = Outcome(Cell(setup, seed), place, DONE, metric="accuracy", validation=metrics, test=metrics)
    made = made._replace(**changes)
    if made.state == DONE and right is not None:
        made.per_example.parent.mkdir(parents=True)
        scores = {str(number): float(number < right) for number in range(EXAMPLES)}
        made.per_example.write_text(json.dumps(scores))
    return made


def cost(**changes: Any) -> Cost:
    numbers: dict[str, Any] = dict.fromkeys(Cost._fields, 0)
    return Cost(**numbers | {"device": "cpu", "total": 1000, "own": 100, "step_seconds": 0.5, **changes})


@pytest.fixture
def outcomes(tmp_path: Path) -> list[Outcome]:
    """DePT, a method that is better, one that is as good, and one that cannot be run."""
    found = [outcome(tmp_path, "dept", seed, 20 + seed) for seed in range(3)]
    found += [outcome(tmp_path, "lora", seed, 36 + seed) for seed in range(3)]
    found += [outcome(tmp_path, "prompt", seed, 21) for seed in range(2)]
    found += [outcome(tmp_path, "prompt", 2, None, state=FAILED, reason="Loss nan", exit_code=7)]
    return [*found, outcome(tmp_path, "ia3", 0, None, state=NOT_POSSIBLE, reason="too few", metric="")]


class TestComparison:
    def test_means_over_the_seeds_and_their_intervals(self, outcomes: list[Outcome]) -> None:
        dept, lora, prompt, ia3 = summarise(outcomes).entries
        assert (dept.test, lora.test, prompt.test, ia3.test) == (52.5, 92.5, 52.5, None)
        assert dept.interval.over == "seeds"
        assert (dept.interval.high or 0) - 52.5 == pytest.approx(4.3027 * 2.5 / 3**0.5, rel=1e-4)
        assert (prompt.seeds, prompt.missing, prompt.note) == ((0, 1), 1, "failed: Loss nan")
        assert (ia3.seeds, ia3.missing, ia3.note) == ((), 0, "not possible: too few")

    def test_methods_are_compared_with_dept_over_the_examples(self, outcomes: list[Outcome]) -> None:
        dept, lora, prompt, ia3 = summarise(outcomes).entries
        assert (dept.p, ia3.p) == (None, None)
        assert lora.p_over == prompt.p_over == "examples"
        assert lora.significant
        assert not prompt.significant
        assert lora.p is not None
        assert lora.p_holm == pytest.approx(2 * lora.p)

    def test_another_reference(self, outcomes: list[Outcome]) -> None:
        table = summarise(outcomes, reference="lora")
        assert [entry.p is None for entry in table.entries] == [False, True, False, True]
        with pytest.raises(
            UsageError, match=r"--reference is 'dpet', which the sweep does not have\. Did you mean 'dept'"
        ):
            summarise(outcomes, reference="dpet")

    def test_without_dept_nothing_is_compared(self, outcomes: list[Outcome]) -> None:
        table = summarise(outcomes[3:])
        assert table.reference is None
        assert {entry.p for entry in table.entries} == {None}

    def test_scores_that_are_no_means_over_examples_are_paired_over_seeds(self, tmp_path: Path) -> None:
        pairs = [
            outcome(tmp_path, method, seed, right) for method, right in (("dept", 20), ("lora", 30)) for seed in (0, 1)
        ]
        changed = [one._replace(test={"accuracy": one.test["accuracy"] + 1 + one.cell.seed}) for one in pairs]
        entry = summarise(changed).entries[1]
        assert (entry.p, entry.p_over) == (0.5, "seeds")
        single = summarise([one for one in changed if one.cell.seed == 0]).entries[1]
        assert (single.p, single.interval.over) == (None, "")

    def test_one_seed_has_an_interval_over_examples(self, tmp_path: Path) -> None:
        (entry,) = summarise([outcome(tmp_path, "dept", 0, 20)]).entries
        assert entry.interval.over == "examples"

    def test_a_test_without_answers_has_no_score(self, tmp_path: Path) -> None:
        entries = summarise([outcome(tmp_path, method, 0, None) for method in ("dept", "lora")]).entries
        assert [(entry.test, entry.p, entry.interval.over) for entry in entries] == [(None, None, "")] * 2

    def test_equal_values_are_compared_with_each_other(self, tmp_path: Path) -> None:
        made = [
            outcome(tmp_path, method, 0, right, varied=(("steps", steps),))
            for method, steps, right in (("dept", "1", 10), ("dept", "2", 30), ("lora", "1", 10), ("lora", "2", 30))
        ]
        entries = summarise(made, reference="dept").entries
        assert [entry.p for entry in entries] == [None, None, 1.0, 1.0]

    def test_trained_parameters_are_counted_in_the_adapter(self, tmp_path: Path) -> None:
        (tmp_path / "adapter").mkdir()
        shapes = {
            "prompt.prompt": (4, 16),
            "prompt.trained_length": (),
            "visual_embedding.x": (2, 3),
            "heads.rte.w": (5,),
        }
        tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
        assert trained_parameters(tmp_path) == Trained(64, 6, 5)
        assert trained_parameters(tmp_path / "none") is None


class TestFiles:
    def test_markdown(self, outcomes: list[Outcome]) -> None:
        text = to_markdown(summarise([one._replace(cost=cost()) for one in outcomes]))
        assert "| lora | - | 92.50 ± 6.21* |" in text
        assert "| prompt | - | 52.50 ± 0.00 (2) |" in text
        assert "| ia3 | - | not possible |" in text
        assert "**Costs on one cpu**" in text
        assert "| dept | 10.00 % | 500.0 | 0 | 0.0 |" in text
        assert "*: differs from dept (paired permutation test, two-sided, Holm-corrected, p < 0.05)." in text
        assert "(n): so many seeds only." in text
        assert text.endswith("- prompt on rte: failed: Loss nan\n- ia3 on rte: not possible: too few\n")

    def test_one_seed_is_said_to_be_one(self, tmp_path: Path) -> None:
        text = to_markdown(summarise([outcome(tmp_path, "dept", 0, 20), outcome(tmp_path, "full", 0, 20)], budget=5))
        assert "| dept | - | 50.00 [35.00, 65.00] (e) |" in text
        assert "(e): one seed; the 95 % interval is over the test examples (bootstrap)." in text
        assert "†: not bound by the budget of 5 parameters." in text

    def test_rows_of_several_backbones_say_which(self, tmp_path: Path) -> None:
        one = outcome(tmp_path, "dept", 0, 20)
        other = one._replace(
            cell=Cell(one.cell.setup._replace(backbone="google-t5/t5-base"), 0), reason="", state=MISSING
        )
        text = to_markdown(summarise([one, other]))
        assert "| t5-mini: dept |" in text
        assert "| google-t5-t5-base: dept | - | - |" in text
        assert "- dept on rte with google-t5/t5-base: missing" in text

    def test_a_bar_in_a_value_does_not_break_a_table(self, tmp_path: Path) -> None:
        made = outcome(tmp_path, "dept", 0, 20, varied=(("prompt_text", "a|b"),))
        assert r"| dept prompt_text=a\|b |" in to_markdown(summarise([made]))

    def test_latex_has_rules_and_no_raw_sign(self, outcomes: list[Outcome]) -> None:
        text = to_latex(summarise([one._replace(cost=cost()) for one in outcomes]))
        assert text.startswith("% \\usepackage{booktabs}\n")
        assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 2
        assert "lora & - & 92.50 $\\pm$ 6.21* \\\\\n" in text
        assert "95 \\% confidence" in text

    @pytest.mark.parametrize(
        ("plain", "escaped"),
        [
            ("a_b & 5 % of #1, $2 {x}", r"a\_b \& 5 \% of \#1, \$2 \{x\}"),
            ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
            ("± < > †", r"$\pm$ \textless{} \textgreater{} $\dagger$"),
        ],
    )
    def test_every_sign_of_latex_is_escaped(self, plain: str, escaped: str) -> None:
        assert latex(plain) == escaped

    def test_the_csv_of_runs_has_every_metric_and_setting(self, outcomes: list[Outcome]) -> None:
        setup = outcomes[0].cell.setup._replace(overrides=(("training.steps", "3"),), varied=(("steps", "3"),))
        made = [outcomes[0]._replace(cell=Cell(setup, 0)), outcomes[-2]]
        first, second = csv.DictReader(runs_csv(made).splitlines())
        assert (first["steps"], first["settings"], first["test.accuracy"]) == ("3", "training.steps=3", "50.0")
        assert (second["state"], second["exit_code"], second["reason"]) == ("failed", "7", "Loss nan")

    def test_the_csv_of_the_table_has_the_p_values(self, outcomes: list[Outcome]) -> None:
        lines = list(csv.DictReader(table_csv(summarise(outcomes)).splitlines()))
        assert [(line["method"], bool(line["p"]), line["p_over"]) for line in lines] == [
            *(("dept", False, ""), ("lora", True, "examples"), ("prompt", True, "examples"), ("ia3", False, "")),
        ]

    def test_the_csv_of_trials_tells_which_was_chosen(self) -> None:
        trials = [Trial({"prompt": 0.3}, 5.0), Trial({"prompt": 0.1}, None, "nan"), Trial({"prompt": 1.0}, 5.0)]
        lines = list(csv.DictReader(trials_csv({Setup("t5-mini", "rte", "dept"): trials}).splitlines()))
        assert [(line["optimizer.prompt_lr"], line["chosen"]) for line in lines] == [
            *(("0.3", "True"), ("0.1", "False"), ("1.0", "False")),
        ]

    def test_an_empty_legend_says_nothing(self) -> None:
        assert legend(Table((), None, None)) == []


class TestPlots:
    def test_equal_numbers_give_equal_pictures(self, outcomes: list[Outcome]) -> None:
        table = summarise([one._replace(cost=cost()) for one in outcomes])
        pictures = draw_all(table)
        assert set(pictures) == {"scores.svg", "parameters.svg", "step_time.svg", "memory.svg"}
        assert all(picture.startswith(b"<?xml") for picture in pictures.values())
        assert draw_all(table) == pictures

    def test_without_numbers_there_are_none(self, outcomes: list[Outcome]) -> None:
        assert draw_all(summarise(outcomes[-1:])) == {}
