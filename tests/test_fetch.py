from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dept_vl.command_line import run
from dept_vl.config import layer_names, load_settings
from dept_vl.fetch import RECORD, main
from dept_vl.tasks.task import load_task
from dept_vl.types import Target

pytestmark = pytest.mark.usefixtures("offline_hub")

CARD = "---\nconfigs:\n- config_name: NAME\n  data_files:\n"
PAIRS = {"train": [0, 1, 1, 0], "validation": [1, 0], "test": [-1, -1, -1]}  # labels of each split


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The hub's GLUE as a local folder, with RTE in small."""
    folder = tmp_path / "hub"
    (folder / "rte").mkdir(parents=True)
    files = "".join(f"  - split: {split}\n    path: rte/{split}-*\n" for split in PAIRS)
    (folder / "README.md").write_text(CARD.replace("NAME", "rte") + files + "---\n")
    for split, labels in PAIRS.items():
        texts = [f"{split} {number}" for number in range(len(labels))]
        table = pa.table({"sentence1": texts, "sentence2": texts, "label": labels, "idx": list(range(len(labels)))})
        pq.write_table(table, folder / "rte" / f"{split}-00000-of-00001.parquet")
    return folder


def arguments(repository: Path, output: Path, *more: str) -> list[str]:
    return ["--task", "rte", "--repository", str(repository), "--output", str(output), *more]


def test_the_rows_are_a_data_folder_of_the_task(repository: Path, tmp_path: Path) -> None:
    main(arguments(repository, tmp_path / "data"))
    task = load_task(load_settings({"task": "rte"}, []).task)
    first = task.read(tmp_path / "data", "train")[0]
    assert first.text == "sentence1: train 0 sentence2: train 0"
    assert (first.references, first.targets) == (("entailment",), (Target("0", 1.0),))
    assert len(task.read(tmp_path / "data", "official-validation")) == 2
    assert [one.references for one in task.read(tmp_path / "data", "official-test")] == [()] * 3
    assert not (tmp_path / "data.partial").exists()


def test_what_was_fetched_is_recorded(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(repository, tmp_path / "data"))
    record = json.loads((tmp_path / "data" / RECORD).read_text())
    assert {key: record[key] for key in ("repository", "config", "revision")} == {
        "repository": str(repository),
        "config": "rte",
        "revision": None,
    }
    assert {split: one["rows"] for split, one in record["splits"].items()} == {"train": 4, "validation": 2, "test": 3}
    for split, one in record["splits"].items():
        content = (tmp_path / "data" / f"{split}.rows.jsonl").read_bytes()
        assert one["sha256"] == hashlib.sha256(content).hexdigest()
    assert f"Wrote {tmp_path / 'data'}\n{repository} rte\ntrain" in capsys.readouterr().err


def test_fetching_again_changes_nothing(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, arguments(repository, tmp_path / "data")) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    capsys.readouterr()
    assert run(main, arguments(repository, tmp_path / "data")) == 0
    assert f"{tmp_path / 'data'} is there already; nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


def test_a_folder_of_something_else_is_refused(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    message = f"error: {tmp_path / 'data'} holds something else than this data set. Give a new folder, or remove that"
    assert run(main, arguments(repository, tmp_path / "data")) == 3
    assert message in capsys.readouterr().err
    (tmp_path / "data" / "thesis.txt").unlink()
    assert run(main, arguments(repository, tmp_path / "data")) == 0
    for other in (("--config", "mnli"), ("--revision", "v2")):
        assert run(main, arguments(repository, tmp_path / "data", *other)) == 3
        assert message in capsys.readouterr().err


def test_what_a_stopped_download_left_is_no_part_of_the_data(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "old.rows.jsonl").write_text("{}\n")
    main(arguments(repository, tmp_path / "data"))
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        RECORD,
        *(f"{split}.rows.jsonl" for split in PAIRS),
    }


def test_the_hub_out_of_reach_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--task", "rte", "--output", str(tmp_path / "data")]) == 3
    assert "error: nyu-mll/glue is not in the cache, and the hub cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_task_that_the_hub_does_not_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--task", "vqa", "--output", str(tmp_path / "data")]) == 2
    message = "error: The data of task vqa is not fetched from the hub. Give its official files as --data, as docs/task"
    assert message in capsys.readouterr().err


def test_large_splits_are_written_in_pieces(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(arguments(repository, tmp_path / "whole"))
    monkeypatch.setattr("dept_vl.fetch.WRITTEN_AT_ONCE", 3)
    main(arguments(repository, tmp_path / "pieces"))
    for split in PAIRS:
        whole, pieces = (tmp_path / name / f"{split}.rows.jsonl" for name in ("whole", "pieces"))
        assert whole.read_bytes() == pieces.read_bytes()


def test_every_text_task_has_a_place_on_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in layer_names("task"):
        if load_settings({"task": name}, []).task.images_per_example == 0:
            assert run(main, ["--task", name, "--output", str(tmp_path / name)]) == 3
            assert "the hub cannot be reached" in capsys.readouterr().err, name
