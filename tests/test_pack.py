from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

from dept_vl.command_line import run
from dept_vl.pack import PLACEHOLDERS, main, pack
from dept_vl.tasks import glue, superglue
from dept_vl.validate import main as validate
from feature_extraction.errors import InputDataError, UsageError


@pytest.fixture(autouse=True)
def small_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test sets of three rows."""
    for name, file in glue.SERVER_FILES.items():
        monkeypatch.setitem(glue.SERVER_FILES, name, file._replace(rows=3))
    for name, (form, _) in superglue.SERVER_FILES.items():
        monkeypatch.setitem(superglue.SERVER_FILES, name, (form, 3))


def make_run(folder: Path, name: str, content: str, split: str = "official-test") -> Path:
    """The folder of a run with a file of an evaluation."""
    evaluation = folder / "evaluation" / split
    evaluation.mkdir(parents=True, exist_ok=True)
    (evaluation / name).write_text(content)
    return folder


def tsv(*predictions: str) -> str:
    return "index\tprediction\n" + "".join(f"{index}\t{one}\n" for index, one in enumerate(predictions))


def members(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture
def rte(tmp_path: Path) -> Path:
    return make_run(tmp_path / "rte", "RTE.tsv", tsv("entailment", "not_entailment", "entailment"))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """MultiRC's official test file, with three answers."""
    answers = [[{"idx": 0, "text": "c"}, {"idx": 1, "text": "d"}], [{"idx": 2, "text": "e"}]]
    row = {
        "idx": 7,
        "passage": {
            "text": "a",
            "questions": [{"idx": 4 + place, "question": "b", "answers": one} for place, one in enumerate(answers)],
        },
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "test.jsonl"


def test_tasks_without_a_run_get_placeholders(rte: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "glue.zip"
    pack("glue", [rte], output)
    files = members(output)
    assert list(files) == list(PLACEHOLDERS["glue"])
    assert set(files) == set(glue.SERVER_FILES)
    assert files["RTE.tsv"] == tsv("entailment", "not_entailment", "entailment")
    assert files["CoLA.tsv"] == tsv("1", "1", "1")
    assert files["STS-B.tsv"] == tsv("2.500", "2.500", "2.500")


def test_the_record_says_where_each_file_is_from(rte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack("glue", [rte], tmp_path / "glue.zip")
    record = json.loads((tmp_path / "glue.json").read_text())
    assert set(record) == set(glue.SERVER_FILES)
    assert record["RTE.tsv"]["file"] == str(rte / "evaluation" / "official-test" / "RTE.tsv")
    assert record["WNLI.tsv"]["placeholder"] == "0"
    assert all(len(one["sha256"]) == 64 for one in record.values())
    shown = capsys.readouterr().err
    assert "WNLI.tsv       placeholder: 0\n" in shown
    assert f"Wrote {tmp_path / 'glue.zip'}. 10 of its 11 files are placeholders" in shown


def test_mnli_s_two_files_come_from_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mnli", "MNLI-m.tsv", tsv("neutral", "neutral", "entailment"))
    make_run(folder, "MNLI-mm.tsv", tsv("neutral", "neutral", "neutral"), split="official-test-mm")
    pack("glue", [folder], tmp_path / "glue.zip")
    files = members(tmp_path / "glue.zip")
    assert files["MNLI-m.tsv"] != files["MNLI-mm.tsv"] == tsv("neutral", "neutral", "neutral")


def test_files_of_a_run_of_several_tasks_are_found(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "pair", "RTE.tsv", tsv(*["entailment"] * 3), split="rte/official-test")
    make_run(folder, "CoLA.tsv", tsv("0", "1", "0"), split="cola/official-test")
    pack("glue", [folder], tmp_path / "glue.zip")
    assert members(tmp_path / "glue.zip")["CoLA.tsv"] == tsv("0", "1", "0")


def test_the_same_runs_give_the_same_bytes(rte: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "other.zip"):
        pack("glue", [rte], tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


@pytest.mark.parametrize("task", ["rte", "cola", "mnli"])
def test_the_archive_is_one_that_every_glue_task_s_check_takes(
    task: str, rte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack("glue", [rte], tmp_path / "glue.zip")
    assert run(validate, ["--task", task, "--submission", str(tmp_path / "glue.zip")]) == 0
    assert f"glue.zip is a leaderboard file of {task}" in capsys.readouterr().out


def test_superglue_s_archive_has_ten_files_with_labels_of_their_types(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"idx": index, "label": "true"}) + "\n" for index in range(3))
    folder = make_run(tmp_path / "boolq", "BoolQ.jsonl", lines)
    output = tmp_path / "superglue.zip"
    command = ["--benchmark", "superglue", "--runs", str(folder), "--output", str(output)]
    assert run(main, [*command, "--multirc-questions", str(questions)]) == 0
    files = members(output)
    assert set(files) == set(superglue.SERVER_FILES)
    assert files["BoolQ.jsonl"] == lines
    assert json.loads(files["COPA.jsonl"].splitlines()[2]) == {"idx": 2, "label": 1}
    assert json.loads(files["WSC.jsonl"].splitlines()[0]) == {"idx": 0, "label": "False"}
    assert json.loads(files["MultiRC.jsonl"]) == {
        "idx": 7,
        "passage": {
            "questions": [
                {"idx": 4, "answers": [{"idx": 0, "label": 0}, {"idx": 1, "label": 0}]},
                {"idx": 5, "answers": [{"idx": 2, "label": 0}]},
            ]
        },
    }
    assert run(validate, ["--task", "multirc", "--submission", str(output)]) == 0
    assert "9 of its 10 files are placeholders" in capsys.readouterr().err


def test_a_placeholder_for_multirc_needs_its_ids(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "copa", "COPA.jsonl", '{"idx": 0, "label": 1}\n')
    message = "No run has MultiRC.jsonl, and a placeholder needs the ids of its test set. Give a run of multirc, or its"
    with pytest.raises(UsageError, match=re.escape(message)):
        pack("superglue", [folder], tmp_path / "superglue.zip")
    assert not (tmp_path / "superglue.zip").exists()


def test_a_run_without_a_test_file_is_told_to_be_evaluated(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "rte", "RTE.tsv", tsv("entailment"), split="test")  # a half of the development set
    message = "rte has no test file of this benchmark (CoLA.tsv, SST-2.tsv, "
    advice = f"Make it: python -m dept_vl.evaluate --run {folder} --split official-test"
    with pytest.raises(InputDataError, match=rf"{re.escape(message)}.*{re.escape(advice)}"):
        pack("glue", [folder], tmp_path / "glue.zip")
    with pytest.raises(InputDataError, match=r"none is no folder. Give one that dept_vl.train wrote"):
        pack("glue", [tmp_path / "none"], tmp_path / "glue.zip")


def test_two_runs_of_a_task_are_refused(rte: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", "RTE.tsv", tsv(*["entailment"] * 3))
    with pytest.raises(
        UsageError, match=r"RTE.tsv is both .*rte/eval.*RTE.tsv and .*other.*RTE.tsv. Give one of these"
    ):
        pack("glue", [rte, other], tmp_path / "glue.zip")


def test_files_that_the_server_would_refuse_are_named_by_their_run_and_nothing_is_written(tmp_path: Path) -> None:
    short = make_run(tmp_path / "rte", "RTE.tsv", tsv("entailment", "entailment"))
    wrong = make_run(tmp_path / "cola", "CoLA.tsv", tsv("1", "yes", "0"))
    with pytest.raises(InputDataError) as found:
        pack("glue", [short, wrong], tmp_path / "glue.zip")
    message = str(found.value)
    assert message.startswith("The server would refuse the archive: ")
    assert f"{short / 'evaluation' / 'official-test' / 'RTE.tsv'}: missing ids: 1 (2)" in message
    assert f"{wrong / 'evaluation' / 'official-test' / 'CoLA.tsv'}: predictions other than 0, 1" in message
    assert message.endswith("Evaluate the whole official test of each run, and pack again")
    assert not (tmp_path / "glue.zip").exists()
    assert not (tmp_path / "glue.json").exists()


def test_the_output_is_a_zip(rte: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--output is .*glue.json, but the server takes a zip archive. Give a name th"
    ):
        pack("glue", [rte], tmp_path / "glue.json")


def test_other_benchmarks_are_unknown(rte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--benchmark", "mrqa", "--runs", str(rte), "--output", str(tmp_path / "x.zip")]) == 2
    assert "invalid choice: 'mrqa'" in capsys.readouterr().err
