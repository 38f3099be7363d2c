from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dept_vl.command_line import run
from dept_vl.evaluate import main
from dept_vl.types import Scores
from feature_extraction.errors import UsageError

TOY_DATA = Path(__file__).parent / "toy_data" / "vqa"
QUESTIONS = str(TOY_DATA / "v2_OpenEnded_mscoco_val2014_questions.json")
ANNOTATIONS = str(TOY_DATA / "v2_mscoco_val2014_annotations.json")
IDS = (42000, 42001, 42002, 73000, 73001, 74000)


@pytest.fixture
def predictions(tmp_path: Path) -> str:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"question_id": one, "answer": "yes"} for one in IDS]))
    return str(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls that reach the model's side of an evaluation."""
    received: list[tuple[Any, ...]] = []

    def evaluate_run(*arguments: Any, **options: Any) -> list[tuple[str, str, Scores]]:
        received.append((*arguments, options))
        scores = Scores({"accuracy": 75.9, "n": 6, "number": None}, {}, {"number": "there are no numbers"})
        return [(task, arguments[1], scores) for task in ("vqa", "gqa")[: len(str(arguments[0]))]]

    inference = ModuleType("dept_vl.inference")
    inference.evaluate_run = evaluate_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dept_vl.inference", inference)
    return received


def test_an_existing_file_is_scored_to_stdout_and_files(
    predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, per_example = tmp_path / "out" / "metrics.json", tmp_path / "out" / "scores.json"
    arguments = ["--task", "vqa", "--predictions", predictions, "--annotations", ANNOTATIONS]
    files = ["--questions", QUESTIONS, "--output", str(output), "--per-example", str(per_example)]
    assert run(main, [*arguments, *files]) == 0
    metrics = json.loads(output.read_text())
    assert metrics["accuracy"] == 16.67
    assert metrics["yes_no"] == 50
    assert metrics["number"] == 0
    assert metrics["n"] == 6
    assert metrics["ci_low"] <= metrics["accuracy"] <= metrics["ci_high"]
    assert metrics["per_type/is the"] == 100
    assert json.loads(per_example.read_text()) == {str(one): float(one == 42001) for one in IDS}
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed == {name: str(value) for name, value in metrics.items()}


def test_nothing_is_written_unless_asked(predictions: str, tmp_path: Path) -> None:
    assert run(main, ["--task", "vqa", "--predictions", predictions, "--annotations", ANNOTATIONS]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_scoring_and_help_do_not_load_torch(predictions: str) -> None:
    script = (
        "import sys\nfrom dept_vl.command_line import run\nfrom dept_vl.evaluate import main\n"
        "code = run(main, sys.argv[1:])\nsys.exit(code or 10 * ('torch' in sys.modules))"
    )
    arguments = ["--task", "vqa", "--predictions", predictions, "--annotations", ANNOTATIONS]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("accuracy")


def test_help_shows_both_ways_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--run" in text
    assert "--predictions" in text
    assert "exit codes: 0 done" in text


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"question_id": one, "answer": "yes"} for one in IDS[1:]], "missing ids: 1 (42000)"),
        ([{"question_id": one, "answer": "yes"} for one in (*IDS, 5)], "ids that the split does not have: 1 (5)"),
        ([{"question_id": one, "answer": "yes"} for one in (*IDS, IDS[0])], "more than one prediction: 1 (42000)"),
        ([{"question_id": str(one), "answer": "yes"} for one in IDS], '"question_id" is text, not a whole number: 6'),
        ([{"question_id": one, "answer": 1} for one in IDS], '"answer" is a whole number, not text: 6'),
    ],
)
def test_wrong_predictions_are_named_with_exit_code_3(
    rows: list[Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(rows))
    arguments = ["--task", "vqa", "--predictions", str(tmp_path / "results.json"), "--annotations", ANNOTATIONS]
    assert run(main, [*arguments, "--output", str(tmp_path / "metrics.json")]) == 3
    message = capsys.readouterr().err
    assert named in message
    assert "results.json" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "metrics.json").exists()


def test_a_missing_file_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "none.json")
    assert run(main, ["--task", "vqa", "--predictions", absent, "--annotations", ANNOTATIONS]) == 3
    assert f"No file {absent}" in capsys.readouterr().err


def test_a_run_is_evaluated_with_its_split_folder_and_settings(
    calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--run", "a", "task.num_beams=5", "--split", "test", "--output", "out", "data.workers=2"])
    options = {"task": None, "features": None, "data": None, "single": False}
    assert calls == [(Path("a"), "test", Path("out"), ["task.num_beams=5", "data.workers=2"], options)]
    captured = capsys.readouterr()
    assert captured.out == "accuracy       75.9\nn                 6\nnumber         null\n"
    assert captured.err == "number is null: there are no numbers\n"


def test_a_run_finds_data_and_features_that_have_moved(calls: list[tuple[Any, ...]]) -> None:
    main(["--run", "a", "--split", "test", "--data", "d", "--features", "f", "--task", "vqa", "--single"])
    options = {"task": "vqa", "features": Path("f"), "data": Path("d"), "single": True}
    assert calls == [(Path("a"), "test", None, [], options)]


def test_several_evaluations_are_told_apart_by_a_heading(
    calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--run", "ab", "--split", "test"])
    table = "accuracy       75.9\nn                 6\nnumber         null\n"
    assert capsys.readouterr().out == f"vqa test\n{table}gqa test\n{table}"


def test_a_further_process_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    inference = ModuleType("dept_vl.inference")
    inference.evaluate_run = lambda *arguments, **options: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dept_vl.inference", inference)
    main(["--run", "runs/a", "--split", "test"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --run RUN --split SPLIT, .* or --task TASK --predictions FILE --annotations FILE"),
        (["--run", "a", "--task", "vqa"], "--run needs --split. See: python -m dept_vl.evaluate --help"),
        (["--run", "a"], "--run needs --split. See: python -m dept_vl.evaluate --help"),
        (["--task", "vqa"], "--task needs --predictions and --annotations. See"),
        (["--run", "a", "--split", "test", "--questions", "q"], "--run does not go with --questions. See"),
        (["--run", "a", "--split", "test", "--per-example", "s"], "--run does not go with --per-example"),
        (["--run", "a", "--split", "test", "--choices", "c"], "--run does not go with --choices"),
        (["--task", "vqa", "--predictions", "p", "--annotations", "a", "--single"], "--task does not go with --single"),
        (
            ["--task", "vqa", "--predictions", "p", "--annotations", "a", "--choices", "c"],
            "^--choices is of no use for task vqa. Leave it out$",
        ),
        (
            ["--task", "vqa", "--predictions", "p", "--annotations", "a", "--split", "test", "data.workers=2"],
            "--task does not go with --split or key=value. See",
        ),
        (
            ["--task", "vqa,gqa", "--predictions", "p", "--annotations", "a"],
            "^One task is needed here, but vqa, gqa are named. Name one of them$",
        ),
        (["--task", "vqq", "--predictions", "p", "--annotations", "a"], "vqq.*vqa"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(arguments)
