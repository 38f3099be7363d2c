"""The transfer command: ordinary runs over sources, shots and seeds, resumed, compared, and nothing mixed up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl import inference
from dept_vl.command_line import run
from dept_vl.config import settings_from_yaml
from dept_vl.model.adapter import load_adapter, save_adapter
from dept_vl.train import main as train_main
from dept_vl.training import run as training_run
from dept_vl.transfer import main, source_names
from feature_extraction.errors import UsageError

TOY_DATA = Path(__file__).parent / "toy_data"
SIZES = (
    *("task.max_text_length=16", "method.budget_length=10", "method.prompt_length=4", "method.rank=3"),
    *("data.batch_size=4", "training.steps=3", "training.epochs=null", "training.evaluate_every=2"),
)


@pytest.fixture(scope="module")
def sources(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished runs of two tasks."""
    folder = tmp_path_factory.mktemp("sources")
    for task in ("mrpc", "rte"):
        where = ["--data", str(TOY_DATA / task), "--output", str(folder / task), "--backbone", str(tiny_t5)]
        train_main(["--task", task, *where, *SIZES])
    return [folder / "mrpc", folder / "rte"]


@pytest.fixture(scope="module")
def transfer(tiny_t5: Path) -> Callable[..., list[str]]:
    """The command line of a transfer to CB."""

    def make(output: Path, *more: str, sources: list[Path]) -> list[str]:
        chosen = ["--task", "cb", "--data", str(TOY_DATA / "cb"), "--backbone", str(tiny_t5), "--output", str(output)]
        return [*chosen, *(["--sources", *map(str, sources)] if sources else []), *SIZES, *more]

    return make


Transfer = Callable[..., list[str]]
GRID = ("--shots", "2,5", "--seeds", "2", "--scratch")


@pytest.fixture(scope="module")
def finished(transfer: Transfer, sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished transfer; not to be changed."""
    folder = tmp_path_factory.mktemp("transfer") / "cb"
    main(transfer(folder, *GRID, sources=sources))
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("results.json", "results.csv", "results.md")}


def shots(folder: Path) -> list[str]:
    return json.loads((folder / "shots.json").read_text())["cb"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    capsys.readouterr()
    assert run(main, arguments) == code
    return capsys.readouterr().err


class TestRuns:
    def test_there_is_a_run_for_every_source_shots_and_seed(self, finished: Path, sources: list[Path]) -> None:
        found = {path.parent.relative_to(finished / "runs").as_posix() for path in finished.glob("runs/*/*/run.json")}
        starts = ("mrpc-all", "rte-all", "scratch")
        assert found == {f"{start}/k{k}-seed{seed}" for start in starts for k in (2, 5) for seed in (0, 1)}
        settings = settings_from_yaml(finished / "runs" / "rte-all" / "k5-seed1" / "config.yaml")
        assert (settings.data.shots, settings.data.shots_seed, settings.training.seed) == (5, 1, 1)
        assert settings.method.init_from == str(sources[1] / "adapter")
        assert settings_from_yaml(finished / "runs" / "scratch" / "k5-seed1" / "config.yaml").method.init_from is None

    @pytest.mark.parametrize("k", [2, 5])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_all_starts_of_one_k_and_seed_learn_from_the_same_examples(self, finished: Path, k: int, seed: int) -> None:
        chosen = [shots(folder) for folder in sorted(finished.glob(f"runs/*/k{k}-seed{seed}"))]
        assert len(chosen) == 3
        assert len(chosen[0]) == k
        assert chosen[0] == chosen[1] == chosen[2]

    def test_seeds_draw_other_examples(self, finished: Path) -> None:
        drawn = {tuple(shots(folder)) for folder in finished.glob("runs/scratch/k2-seed*")}
        assert len(drawn) == 2

    def test_every_mode_is_run_and_learns_from_the_same_examples_too(
        self, transfer: Transfer, sources: list[Path], finished: Path, tmp_path: Path
    ) -> None:
        modes = ("--modes", "prompt,prompt_a", "--shots", "5", "--seeds", "1")
        main(transfer(tmp_path / "out", *modes, sources=sources[:1]))
        for mode in ("prompt", "prompt_a"):
            folder = tmp_path / "out" / "runs" / f"mrpc-{mode}" / "k5-seed0"
            assert settings_from_yaml(folder / "config.yaml").method.init_parts == mode
            assert shots(folder) == shots(finished / "runs" / "scratch" / "k5-seed0")

    def test_the_source_is_what_a_run_starts_from(self, finished: Path) -> None:
        tensors = {
            start: load_adapter(finished / "runs" / start / "k5-seed0" / "adapter").tensors["prompt.prompt"]
            for start in ("mrpc-all", "rte-all", "scratch")
        }
        assert (tensors["mrpc-all"] - tensors["rte-all"]).abs().max() > 0
        assert (tensors["mrpc-all"] - tensors["scratch"]).abs().max() > 0

    def test_tasks_with_images_start_from_tasks_with_images(
        self,
        transfer: Transfer,
        finished_run: Path,
        toy_nlvr2: Path,
        toy_store: Path,
        tiny_t5: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        where = ["--task", "nlvr2", "--data", str(toy_nlvr2), "--features", str(toy_store), "--output", str(tmp_path)]
        grid = ["--backbone", str(tiny_t5), "--sources", str(finished_run), "--shots", "4", "--seeds", "1"]
        splits = "task.splits={train: train, validation: val, test: test}"
        main([*where, *grid, *SIZES, splits, "method.rank=null", "task.max_text_length=8"])
        captured = capsys.readouterr()
        assert "P, A, B, the visual embedding\nThe embedding of image orders has 1 rows in the source" in captured.err
        assert "| 4 | dept | all | 1 |" in captured.out


class TestResults:
    def test_the_numbers_are_those_of_the_runs(self, finished: Path) -> None:
        content = json.loads((finished / "results.json").read_text())
        assert (content["task"], content["metric"]) == ("cb", settings_of(finished).task.selection_metric)
        assert len(content["rows"]) == 6
        assert len(content["runs"]) == 12
        for one in content["runs"]:
            for split in ("validation", "test"):
                metrics = json.loads((finished / one["folder"] / "evaluation" / split / "metrics.json").read_text())
                assert one[split] == metrics
        chosen = [(row["shots"], row["parts"]) for row in content["rows"] if row["chosen"]]
        assert sorted(chosen) == [(2, "all"), (5, "all")]

    def test_the_table_is_printed(
        self, transfer: Transfer, sources: list[Path], finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(transfer(finished, *GRID, sources=sources))
        captured = capsys.readouterr()
        assert captured.out == (finished / "results.md").read_text()
        assert captured.err.splitlines()[0] == "[1 of 12] runs/mrpc-all/k2-seed0"
        assert captured.err.splitlines()[-1] == f"Wrote results.md, results.csv and results.json in {finished}"


def settings_of(finished: Path) -> Any:
    return settings_from_yaml(finished / "runs" / "scratch" / "k2-seed0" / "config.yaml")


class TestGoingOn:
    def test_what_is_finished_is_not_done_again(
        self, transfer: Transfer, sources: list[Path], copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*arguments: object, **options: object) -> None:
            raise AssertionError

        before = results(copy)
        monkeypatch.setattr(training_run, "train_run", never)
        monkeypatch.setattr(inference, "evaluate_run", never)
        main(transfer(copy, *GRID, sources=sources))
        assert results(copy) == before

    def test_a_stopped_command_goes_on_and_ends_as_if_it_had_not_been_stopped(
        self,
        transfer: Transfer,
        sources: list[Path],
        finished: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        original = training_run.train_run
        stopped: list[Path] = []

        def train_run(**options: Any) -> None:
            if len(stopped) == 2:
                options["stop"].name = "SIGTERM"  # as if the signal came: the loop saves and ends
            stopped.append(options["output"])
            original(**options)

        monkeypatch.setattr(training_run, "train_run", train_run)
        arguments = transfer(tmp_path / "out", *GRID, sources=sources)
        assert "stopped: " in refused(arguments, capsys, code=75)
        assert len(stopped) == 3
        assert not (tmp_path / "out" / "results.json").exists()
        monkeypatch.setattr(training_run, "train_run", original)
        main(arguments)
        assert results(tmp_path / "out") == results(finished)

    def test_a_signal_between_two_runs_stops_before_the_next(
        self,
        transfer: Transfer,
        sources: list[Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        original = training_run.train_run

        def train_run(**options: Any) -> None:
            original(**options)
            options["stop"].name = "SIGTERM"

        monkeypatch.setattr(training_run, "train_run", train_run)
        message = refused(transfer(tmp_path / "out", *GRID, sources=sources), capsys, code=75)
        assert message.endswith("stopped: 1 of 12 runs are done. The same command goes on with the next\n")

    def test_more_sources_shots_and_seeds_can_be_asked_for_later(
        self, transfer: Transfer, sources: list[Path], copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = training_run.train_run
        trained: list[str] = []

        def train_run(**options: Any) -> None:
            trained.append(options["output"].relative_to(copy).as_posix())
            original(**options)

        monkeypatch.setattr(training_run, "train_run", train_run)
        main(transfer(copy, "--shots", "2", "--seeds", "3", sources=sources[1:]))
        assert trained == ["runs/rte-all/k2-seed2"]
        rows = json.loads((copy / "results.json").read_text())["rows"]
        assert [(row["source"], row["seeds"]) for row in rows] == [("rte", 3)]

    def test_runs_of_other_settings_are_refused(
        self, transfer: Transfer, sources: list[Path], copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(transfer(copy, *GRID, "optimizer.prompt_lr=0.1", sources=sources), capsys, code=4)
        assert "optimizer.prompt_lr  0.3       0.1" in message

    def test_a_source_that_was_trained_anew_is_refused(
        self, transfer: Transfer, sources: list[Path], copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        moved = Path(shutil.copytree(sources[0], tmp_path / "mrpc"))
        main(transfer(copy, "--shots", "1", "--seeds", "1", sources=[moved]))
        adapter = load_adapter(moved / "adapter")
        adapter.tensors["prompt.prompt"] += 1
        save_adapter(moved / "adapter", adapter)
        message = refused(transfer(copy, "--shots", "1", "--seeds", "1", sources=[moved]), capsys, code=4)
        assert "tensors of method.init_from" in message


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--shots", "4,0"), "--shots is '4,0'; give numbers of 1 or more joined by commas, as in 4,16,32"),
            (("--shots", "few"), "--shots is 'few'; give numbers of 1 or more joined by commas, as in 4,16,32"),
            (("--seeds", "0"), "--seeds is 0; give how many seeds, 1 or more"),
            (("--modes", "all,b"), "--modes has 'b'; it takes some of prompt, prompt_a, all, joined by commas"),
            (
                ("training.seed=3",),
                "'training.seed=3': this is set by --shots, --seeds, --sources and --modes. Use those",
            ),
            (("data.shots=3",), "'data.shots=3': this is set by --shots, --seeds, --sources and --modes. Use those"),
            (("--features", "x"), "--features is of no use for cb, which has no images. Leave it out"),
        ],
        ids=str,
    )
    def test_wrong_options(
        self,
        transfer: Transfer,
        sources: list[Path],
        tmp_path: Path,
        more: tuple[str, ...],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert refused(transfer(tmp_path / "out", *more, sources=sources), capsys) == f"error: {message}\n"
        assert not (tmp_path / "out").exists()

    def test_nothing_to_compare(self, transfer: Transfer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(transfer(tmp_path / "out", sources=[]), capsys)
        assert message == "error: There is nothing to compare: give --sources RUN ..., or --scratch, or both\n"

    def test_a_source_without_an_adapter_is_told_before_any_run(
        self, transfer: Transfer, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(transfer(tmp_path / "out", sources=[*sources, tmp_path / "none"]), capsys, code=3)
        assert "none, where no trained adapter is" in message
        assert not (tmp_path / "out").exists()

    def test_a_source_that_does_not_fit_is_told_with_what_would(
        self, transfer: Transfer, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(transfer(tmp_path / "out", "method.prompt_length=3", sources=sources), capsys, code=4)
        assert message.endswith("make this run like it: method.prompt_length=4\n")


class TestNames:
    def test_a_source_is_called_like_its_run_and_perhaps_its_task(self, tmp_path: Path) -> None:
        paths = [tmp_path / "mnli", tmp_path / "qqp" / "adapter", tmp_path / "both" / "adapter" / "vqa"]
        assert source_names(paths) == dict(zip(("mnli", "qqp", "both-vqa"), paths, strict=True))

    def test_equal_names_are_refused(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a" / "mnli", tmp_path / "b" / "mnli"]
        with pytest.raises(UsageError, match=r"are both called 'mnli'\. Rename one of the folders"):
            source_names(paths)
        with pytest.raises(UsageError, match="scratch and the start without a source are both called 'scratch'"):
            source_names([tmp_path / "scratch"])
