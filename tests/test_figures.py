"""The figures command: measured and run once, gone on with, and wrong options told before any work."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dept_vl import cost as costs
from dept_vl.command_line import run
from dept_vl.cost import Cost
from dept_vl.figures import COSTS, NAMES, OPTIONS, main
from dept_vl.settings import Settings
from dept_vl.sweeping import runner
from dept_vl.training import run as training_run

TOY_DATA = Path(__file__).parent / "toy_data"
SIZES = (
    *("task.max_text_length=16", "method.budget_length=10", "method.prompt_length=4", "data.batch_size=4"),
    *("training.steps=1", "training.epochs=null", "training.evaluate_every=1"),
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings whose costs were asked for; a step takes (m + 100) ms."""
    found: list[Settings] = []

    def measure_apart(
        settings: Settings, data: Mapping[str, Path] | None, features: Mapping[str, Path], *, steps: int, warmup: int
    ) -> Cost:
        found.append(settings)
        assert (data, features, steps) == (None, {}, 5)
        seconds = (settings.method.prompt_length + 100) / 1000
        sizes = {"own": 10, "visual": 0, "heads": 0, "total": 1010, "prompt_length": 0, "prompt_parameters": 0}
        others = dict.fromkeys(("startup_seconds", "validation_seconds", "checkpoint_seconds"), 0.0)
        return Cost(
            **{"device": "cpu", **sizes, "rank": 3, **others, "peak_memory_bytes": 10**6, "latency_seconds": seconds},
            **dict.fromkeys(("step_seconds", "step_seconds_low", "step_seconds_high"), seconds),
            examples_per_second=1 / seconds,
            total_steps=None,
            training_seconds=None,
            synthetic=True,
        )

    monkeypatch.setattr(costs, "measure_apart", measure_apart)
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    capsys.readouterr()
    assert run(main, arguments) == code
    return capsys.readouterr().err


class TestCosts:
    def test_figure_3_measures_every_m_and_prompt_tuning(
        self, measured: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["fig3", "--output", str(tmp_path), "--steps", "5"])
        assert [one.method.name for one in measured] == ["prompt", *["dept"] * 5]
        assert {one.data.batch_size for one in measured} == {16}
        lines = rows(tmp_path / "fig3.csv")
        assert [line["m"] for line in lines] == ["0", "20", "40", "60", "80", "100"]
        assert [float(line["step_seconds"]) for line in lines] == [0.1, 0.12, 0.14, 0.16, 0.18, 0.2]
        assert [float(line["relative_time"]) for line in lines] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        captured = capsys.readouterr()
        assert captured.out.startswith("| backbone | m | r |")
        assert captured.err.splitlines()[-1] == f"Wrote fig3.csv, fig3.md, fig3.svg in {tmp_path}"
        assert f"python -m dept_vl.figures fig3 --output {tmp_path} --steps 5" in (tmp_path / "fig3.md").read_text()

    def test_figures_in_one_folder_share_what_was_measured(self, measured: list[Settings], tmp_path: Path) -> None:
        for name in ("fig3", "fig4", "fig3"):
            main([name, "--output", str(tmp_path), "--steps", "5"])
        assert len(measured) == 6
        picture = (tmp_path / "fig3.svg").read_bytes()
        main(["model-size", "--output", str(tmp_path), "--steps", "5"])
        assert len(measured) == 6
        main(["fig3", "--output", str(tmp_path), "--steps", "5"])
        assert (tmp_path / "fig3.svg").read_bytes() == picture

    def test_the_users_own_settings_are_over_the_papers(self, measured: list[Settings], tmp_path: Path) -> None:
        settings = ["data.batch_size=3", "method.budget_length=50", "--tasks", "cola"]
        main(["fig4", "--output", str(tmp_path), "--steps", "5", "--prompt-lengths", "20", *settings])
        assert [one.method.prompt_length for one in measured] == [50, 20]
        assert {one.data.batch_size for one in measured} == {3}
        assert {one.task.name for one in measured} == {"cola"}


@pytest.fixture(scope="module")
def where(tiny_t5: Path) -> list[str]:
    """A task and a backbone for ordinary runs."""
    return ["--tasks", "rte", "--data", str(TOY_DATA / "rte"), "--backbones", str(tiny_t5)]


@pytest.fixture(scope="module")
def finished(where: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished table; not to be changed."""
    folder = tmp_path_factory.mktemp("figures")
    main(["table-glue", *where, "--methods", "dept,prompt", "--seeds", "1", "--output", str(folder), *SIZES])
    return folder


class TestRuns:
    def test_a_table_is_made_of_ordinary_runs(self, finished: Path) -> None:
        found = {path.parent.parent.name for path in finished.glob("table-glue-sweep/runs/*/rte/*/*/run.json")}
        assert found == {"dept", "prompt"}
        lines = {(line["method"], line["task"]): line for line in rows(finished / "table-glue.csv")}
        assert lines["DePT", "rte"]["score"] == "79.14"
        assert lines["dept", "rte"]["whose"] == "ours"
        text = (finished / "table-glue.md").read_text()
        assert "| dept | ours (tiny-t5, 1 run) |" in text
        assert "| DePT | theirs (T5-base, 1 run) | 79.14 | 79.14 |" in text
        assert "| prompt tuning | theirs (T5-base) |  |  |" in text

    def test_a_finished_sweep_gives_the_same_table(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*arguments: object, **options: object) -> None:
            raise AssertionError

        monkeypatch.setattr(runner, "run_grid", never)
        main(["table-glue", "--sweep", str(finished / "table-glue-sweep"), "--output", str(tmp_path)])
        assert rows(tmp_path / "table-glue.csv") == rows(finished / "table-glue.csv")

    def test_a_table_of_ours_only(self, finished: Path, tmp_path: Path) -> None:
        sweep = str(finished / "table-glue-sweep")
        main(["table-glue", "--sweep", sweep, "--ours-only", "--output", str(tmp_path)])
        assert "theirs" not in (tmp_path / "table-glue.md").read_text()

    def test_what_is_finished_is_not_trained_again(
        self, finished: Path, where: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*arguments: object, **options: object) -> None:
            raise AssertionError

        monkeypatch.setattr(training_run, "train_run", never)
        before = (finished / "table-glue.csv").read_bytes()
        main(["table-glue", *where, "--methods", "dept,prompt", "--seeds", "1", "--output", str(finished), *SIZES])
        assert (finished / "table-glue.csv").read_bytes() == before

    def test_runs_that_have_failed_are_told_at_the_end(
        self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = (finished / "table-glue-sweep" / "results.csv").read_text()
        (tmp_path / "results.csv").write_text(text.replace(",done,", ",failed,", 1))
        message = refused(["table-glue", "--sweep", str(tmp_path), "--output", str(tmp_path)], capsys, code=1)
        assert message.endswith(
            "error: 1 run(s) of table-glue have failed or are missing; it is of the others. "
            "The command of the sweep tries them again\n"
        )

    def test_a_table_of_tasks_with_images(self, tiny_t5: Path, toy_vqa: Path, toy_store: Path, tmp_path: Path) -> None:
        data = ["--tasks", "vqa", "--data", str(toy_vqa), "--features", str(toy_store), "--backbones", str(tiny_t5)]
        splits = "task.splits={train: train, validation: val, test: test}"
        options = ["--methods", "dept", "--seeds", "1", *SIZES, splits, "task.max_text_length=8"]
        main(["table-vl", *data, *options, "--output", str(tmp_path)])
        text = (tmp_path / "table-vl.md").read_text()
        assert "| method | whose | vqa (accuracy) | mean |" in text
        assert "| VL-PET-large, 4.16 % trained | theirs (CLIP-BART, 1 run) | 66.40 | 66.40 |" in text

    def test_figure_5_has_every_pair_of_rates(self, where: list[str], tmp_path: Path) -> None:
        main(["fig5", *where, "--rates", "0.3,0.003", "--seeds", "1", "--output", str(tmp_path), *SIZES])
        lines = rows(tmp_path / "fig5.csv")
        assert {(line["prompt_lr"], line["low_rank_lr"], line["single"]) for line in lines} == {
            ("0.3", "0.3", "True"),
            ("0.3", "0.003", "False"),
            ("0.003", "0.3", "False"),
            ("0.003", "0.003", "True"),
        }
        assert "Ours: rte in " in (tmp_path / "fig5.md").read_text()

    def test_few_shots_begin_from_scratch_and_from_sources(
        self, where: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (source,) = finished.glob("table-glue-sweep/runs/*/rte/dept/seed0")
        options = ["--shots", "2", "--seeds", "1", "--sources", str(source), *SIZES, "--output", str(tmp_path)]
        main(["few-shot", *where, *options])
        lines = rows(tmp_path / "few-shot.csv")
        assert [(line["source"], line["shots"], line["seeds"]) for line in lines] == [
            ("scratch", "2", "1"),
            ("seed0", "2", "1"),
        ]
        assert (tmp_path / "few-shot-runs" / "rte" / "dept" / "results.json").is_file()
        assert "from seed0 (all)" in (tmp_path / "few-shot.md").read_text()
        message = refused(["few-shot", *where, "--methods", "prompt", *options], capsys)
        assert "was trained by dept, but --methods has prompt. Name dept there too, or leave this source out" in message


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fig6"], "No figure is called 'fig6'. Did you mean 'fig5'? There are: fig3, fig4, fig5, model-size"),
            (["fig3", "--sweep", "x"], "--sweep is of no use for fig3. Leave it out"),
            (["table-glue", "--prompt-lengths", "3"], "--prompt-lengths is of no use for table-glue. Leave it out"),
            (["fig5", "--ours-only"], "--ours-only is of no use for fig5. Leave it out"),
            (["fig3", "--steps", "0"], "--steps is 0; give 1 or more"),
            (["fig3", "method.rank=3"], "'method.rank=3': this is set by --prompt-lengths and --backbones. Use those"),
            (["fig3", "--tasks", "rte,cola"], "--tasks names 2, but costs are measured on one. Name one of them"),
            (["fig3", "--tasks", "rta"], "--tasks has 'rta'. Did you mean 'rte'? There are: boolq"),
            (
                ["fig3", "--prompt-lengths", "0,100"],
                "--prompt-lengths is '0,100'; give numbers below method.budget_length (l), which is 100, joined by "
                "commas, as in 0,20,40. Prompt tuning with l itself is always there",
            ),
            (
                ["model-size", "--prompt-lengths", "0,20"],
                "--prompt-lengths is '0,20'; model-size has one m. Give one number",
            ),
            (["fig3", "--features", "x"], "--features is of no use for sst2, without images. Leave it out"),
            (
                ["fig3", "--backbones", "a/x,a-x"],
                "--backbones has two that are both called 'a-x'. Rename one of the folders",
            ),
            (["fig5"], "--tasks is missing for fig5. Give one or several, as in --tasks sst2"),
            (["fig5", "--tasks", "rte"], "--data is missing for rte. Give --data rte=PATH too"),
            (
                ["fig5", "--tasks", "rte", "--data", "x", "--rates", "0.3"],
                "--rates is '0.3'; give two learning rates or more, joined by commas, as in 0.3,0.003",
            ),
            (
                ["fig5", "--tasks", "rte", "--data", "x", "--rates", "a,b"],
                "--rates is 'a,b'; give two learning rates or more, joined by commas, as in 0.3,0.003",
            ),
            (
                ["fig5", "--tasks", "rte", "--data", "x", "optimizer.prompt_lr=1"],
                "'optimizer.prompt_lr=1': this is set by --rates. Use that",
            ),
            (["table-glue", "--tasks", "boolq"], "--tasks has 'boolq'. There are: mnli, qqp, qnli, sst2"),
            (
                ["table-glue", "--sweep", "x", "--seeds", "2"],
                "--seeds is of no use with --sweep, whose runs are there already. Leave it out",
            ),
            (
                ["table-glue", "--sweep", "x", "training.steps=3"],
                "'training.steps=3' is of no use with --sweep, whose runs are there already. Leave it out",
            ),
            (
                ["few-shot", "--backbones", "a,b"],
                "--backbones names several, but sources belong to one. Give one, and each an --output",
            ),
            (
                ["few-shot", "--shots", "4,0"],
                "--shots is '4,0'; give numbers of 1 or more joined by commas, as in 4,16,32",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_options(
        self, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = refused([*arguments, "--output", str(tmp_path / "new")], capsys)
        assert found.startswith(f"error: {message}")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", [*COSTS, "fig5", "few-shot"])
    def test_a_missing_matplotlib_is_named_with_its_remedy(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        message = refused([name, "--output", str(tmp_path)], capsys)
        assert message.startswith("error: Figures need matplotlib, which cannot be imported (")
        assert message.endswith(') Run: pip install "dept_vl[sweep]"\n'.replace(") ", "). "))

    def test_tables_need_no_matplotlib(self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        main(["table-glue", "--sweep", str(finished / "table-glue-sweep"), "--output", str(tmp_path)])
        assert (tmp_path / "table-glue.tex").is_file()


def test_every_figure_has_its_options() -> None:
    assert set(OPTIONS) == set(NAMES)
