from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dept_vl.formats.hub import CONVERTED, HubData, open_hub
from dept_vl.formats.rows import HubSource
from feature_extraction.errors import DamagedError, InputDataError

pytestmark = pytest.mark.usefixtures("offline_hub")

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
CARD = """---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
  - split: test
    path: rte/test-*
dataset_info:
- config_name: rte
  features:
  - name: sentence1
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': entailment
          '1': not_entailment
  - name: idx
    dtype: int32
---
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A local folder in the layout of nyu-mll/glue, with two rows a split."""
    folder = tmp_path / "glue"
    (folder / "rte").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split in SPLITS.values():
        write(folder, split, labels=[-1, -1] if split == "test" else [0, 1])
    return folder


def write(folder: Path, split: str, *, labels: list[int], text: str = "It rains.") -> None:
    table = pa.table({"sentence1": [text] * len(labels), "label": labels, "idx": list(range(len(labels)))})
    pq.write_table(table, folder / "rte" / f"{split}-00000-of-00001.parquet")


def source(repository: Path | str, config: str = "rte", splits: dict[str, str] = SPLITS) -> HubSource:
    return HubSource(str(repository), config, splits)


def rows(data: HubData, split: str = "train") -> list[dict[str, Any]]:
    return list(data.splits[split].rows)


def test_rows_come_with_the_hub_s_columns_and_classes_as_numbers(repository: Path) -> None:
    data = open_hub(source(repository))
    assert list(data.splits) == ["train", "validation", "test"]
    assert data.revision is None
    assert data.splits["test"].size == 2
    assert data.splits["test"].class_names == {"label": ["entailment", "not_entailment"]}
    assert rows(data) == [{"sentence1": "It rains.", "label": label, "idx": label} for label in (0, 1)]
    assert [row["label"] for row in rows(data, "test")] == [-1, -1]


def test_a_local_folder_that_has_changed_is_read_anew(repository: Path) -> None:
    open_hub(source(repository))
    write(repository, "train", labels=[1], text="It snows.")
    assert rows(open_hub(source(repository))) == [{"sentence1": "It snows.", "label": 1, "idx": 0}]


def test_absent_splits_are_named_with_those_that_there_are(repository: Path) -> None:
    message = (
        f"{repository} (rte) has no split dev and no split hidden. It has: train, validation, test. Give another copy "
        "of the data set as --repository, or put the official files into a folder and give it as --data"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        open_hub(source(repository, splits={"train": "train", "dev": "dev", "hidden": "hidden"}))


def test_an_unknown_configuration_is_named_with_those_that_there_are(repository: Path) -> None:
    message = "(mnli) cannot be loaded: BuilderConfig 'mnli' not found. Available: ['rte']. Check --config, or put the"
    with pytest.raises(InputDataError, match=re.escape(message)):
        open_hub(source(repository, "mnli"))


def test_without_a_connection_it_is_said_what_to_do(tmp_path: Path) -> None:
    message = (
        "nyu-mll/glue is not in the cache, and the hub cannot be reached: Couldn't reach 'nyu-mll/glue' on the Hub "
        "(OfflineModeIsEnabled). Fetch it where there is a connection and HF_HUB_OFFLINE is not set, or put the off"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        open_hub(source("nyu-mll/glue"))


def test_a_folder_that_is_none_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(
        InputDataError, match=r"none \(rte\) is no data set that can be read: .* Check --repository and"
    ):
        open_hub(source(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputDataError, match=r"empty \(rte\) is no data set that can be read: .*any data files\. Check"
    ):
        open_hub(source(tmp_path / "empty"))


def test_damaged_files_are_said_to_be_so(repository: Path) -> None:
    (repository / "rte" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(
        DamagedError, match=r"glue \(rte\) cannot be read: .*Parquet magic bytes.*\. Fetch it again, or"
    ):
        open_hub(source(repository))


def failing(error: Exception) -> Callable[..., Any]:
    def load(*arguments: object, **options: object) -> Any:
        raise error

    return load


def test_a_failed_download_says_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset_builder", failing(OSError("503 Server Error.")))
    with pytest.raises(
        InputDataError, match=r"glue \(rte\) could not be downloaded: 503 Server Error. Run the same com"
    ):
        open_hub(source("nyu-mll/glue"))


def test_a_full_disk_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetGenerationError

    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("datasets.load_dataset_builder", failing(full))
    with pytest.raises(OSError, match="No space left") as found:
        open_hub(source("nyu-mll/glue"))
    assert found.value is full
    wrapped = DatasetGenerationError("An error occurred")
    wrapped.__cause__ = full
    monkeypatch.setattr("datasets.load_dataset_builder", failing(wrapped))
    with pytest.raises(OSError, match="No space left") as found:
        open_hub(source("nyu-mll/glue"))
    assert found.value is full


def test_a_repository_with_a_script_is_read_from_the_hub_s_conversion(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    asked: list[dict[str, object]] = []
    load = datasets.load_dataset_builder

    def hub(name: str, config: str | None = None, **options: object) -> Any:
        asked.append({"config": config, **options})
        if len(asked) == 1:
            raise RuntimeError("Dataset scripts are no longer supported, but found glue.py")
        return load(str(repository), "rte")

    monkeypatch.setattr("datasets.load_dataset_builder", hub)
    assert len(rows(open_hub(source("nyu-mll/glue")))) == 2
    assert asked[1] == {
        "config": None,
        "cache_dir": None,
        "revision": CONVERTED,
        "data_files": {split: f"rte/{split}/*.parquet" for split in SPLITS.values()},
    }
    assert "nyu-mll/glue has a loading script, which is not run: taking the hub's" in capsys.readouterr().err


def test_another_runtime_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset_builder", failing(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        open_hub(source("nyu-mll/glue"))


def test_of_the_hub_the_commit_is_recorded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    load = datasets.load_dataset_builder

    def hub(name: str, config: str | None, *, revision: str | None, cache_dir: None) -> Any:
        builder = load(str(repository), config)
        builder.hash = f"commit of {revision}"
        return builder

    monkeypatch.setattr("datasets.load_dataset_builder", hub)
    assert open_hub(source("nyu-mll/glue"), revision="v1").revision == "commit of v1"
