from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_extraction.errors import InputDataError
from feature_extraction.images import batches
from feature_extraction.images import tables as image_tables
from feature_extraction.images.batches import decoded_batches, shard_batches
from feature_extraction.images.decoding import ImageFile, ImageRejected, decode_image
from feature_extraction.images.inputs import Preparation
from feature_extraction.images.preprocessing import Preprocessing
from feature_extraction.images.sources import list_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", folder)  # for processes that start anew
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(buffer, format="png")
    return buffer.getvalue()


def stored(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [{"bytes": png(number), "path": f"pictures/p{number}.png"} for number in numbers]


def table(**columns: Any) -> datasets.Dataset:
    """A table whose lists of dictionaries are images."""
    made = datasets.Dataset.from_dict(columns)
    for name, values in columns.items():
        if isinstance(values[0], dict):
            made = made.cast_column(name, datasets.Image())
    return made


def numbers(images: Sequence[ImageFile]) -> dict[str, int]:
    return {image.image_id: int(decode_image(image)[0, 0, 0]) for image in images}


# --- what is read


def test_a_saved_dataset_gives_its_images_by_id(tmp_path: Path) -> None:
    table(image_id=[30, 4, 5], image=stored([1, 2, 3])).save_to_disk(tmp_path / "saved")
    found = list_images(tmp_path / "saved")
    assert [image.image_id for image in found] == ["30", "4", "5"]
    assert numbers(found) == {"30": 1, "4": 2, "5": 3}
    assert found[0].name == f"{tmp_path / 'saved'}: row 0 of column 'image'"
    assert len(pickle.dumps(found[0])) < 300 + len(str(tmp_path))


def test_a_folder_of_parquet_files_is_one_collection(tmp_path: Path) -> None:
    whole = table(id=["a", "b", "c", "d"], picture=stored([1, 2, 3, 4]))
    for number, rows in enumerate((range(1), range(1, 4))):
        whole.select(rows).to_parquet(tmp_path / f"{number}.parquet")
    assert numbers(list_images(tmp_path)) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert numbers(list_images(tmp_path / "1.parquet")) == {"b": 2, "c": 3, "d": 4}


@pytest.mark.parametrize("split", ["", ":train"])
def test_what_the_library_loads_by_name_is_a_source(tmp_path: Path, split: str) -> None:
    table(id=["a"], image=stored([9])).to_parquet(tmp_path / "0.parquet")
    found = list_images(f"datasets:{tmp_path}{split}")
    assert numbers(found) == {"a": 9}
    assert found[0].name == f"datasets:{tmp_path}{split}: row 0 of column 'image'"


def test_plain_bytes_are_images_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [png(1), png(2)], "__key__": ["x", "y"]}), tmp_path / "plain.parquet")
    assert numbers(list_images(tmp_path / "plain.parquet")) == {"x": 1, "y": 2}
    pq.write_table(pa.table({"im": stored([1, 2])}), tmp_path / "undeclared.parquet")
    assert numbers(list_images(tmp_path / "undeclared.parquet")) == {"p1": 1, "p2": 2}


def test_ids_come_from_a_given_or_usual_column_or_else_from_the_stored_names(tmp_path: Path) -> None:
    columns = {"image": stored([1, 2]), "file_name": ["d/a.v2.jpg", "b.png"], "other": ["q", "r"], "id": [7, 8]}
    table(**columns).save_to_disk(tmp_path / "all")
    del columns["id"]
    table(**columns).save_to_disk(tmp_path / "names")
    del columns["file_name"]
    table(**columns).save_to_disk(tmp_path / "none")
    assert list(numbers(list_images(tmp_path / "all"))) == ["7", "8"]
    assert list(numbers(list_images(tmp_path / "all", id_column="other"))) == ["q", "r"]
    assert numbers(list_images(tmp_path / "names")) == {"a.v2": 1, "b": 2}
    assert numbers(list_images(tmp_path / "none")) == {"p1": 1, "p2": 2}


def test_the_column_of_images_may_be_chosen(tmp_path: Path) -> None:
    table(id=["a"], left=stored([1]), right=stored([2]), mask=[png(3)]).save_to_disk(tmp_path / "pairs")
    assert numbers(list_images(tmp_path / "pairs", image_column="right")) == {"a": 2}
    assert numbers(list_images(tmp_path / "pairs", image_column="mask")) == {"a": 3}
    with pytest.raises(InputDataError, match=r"has several columns of images: left, right\. Give --image-column"):
        list_images(tmp_path / "pairs")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_tables_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    table(id=[str(row) for row in range(6)], image=stored(range(0, 60, 10))).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(batches, "Process", get_context(method).Process)  # type: ignore[attr-defined]
    preparation = Preparation(Preprocessing(image_size=1, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3))
    plan = shard_batches(0, list_images(tmp_path / "a.parquet"), 4)
    found = [batch.inputs for batch in decoded_batches(plan, preparation, workers=2)]
    assert [int(red) for one in found if one for red in one.pixels[:, 0, 0, 0]] == list(range(0, 60, 10))


def test_a_table_is_opened_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(id=["a", "b"], image=stored([1, 2])).save_to_disk(tmp_path / "saved")
    opened = []
    load = datasets.load_from_disk
    monkeypatch.setattr(datasets, "load_from_disk", lambda path: opened.append(path) or load(path))
    numbers(list_images(tmp_path / "saved"))
    numbers(list_images(tmp_path / "saved"))
    assert opened == [str(tmp_path / "saved")]


# --- what is refused


def test_an_image_without_bytes_is_rejected_and_its_path_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(png(1))
    rows = [{"bytes": None, "path": str(tmp_path / "real.png")}, {"bytes": png(2), "path": None}, None]
    feature = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, feature), "id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    first, second, third = list_images(tmp_path / "a.parquet")
    with pytest.raises(ImageRejected, match=r"no bytes of it, only the path '.*real\.png', which is not followed"):
        decode_image(first)
    assert numbers([second]) == {"b": 2}
    with pytest.raises(ImageRejected, match=r"row 2 of column 'image': the table holds no bytes of it$"):
        decode_image(third)


def test_a_table_of_several_splits_is_refused_with_their_names(tmp_path: Path) -> None:
    one = table(id=["a"], image=stored([1]))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputDataError, match=r"both has the splits train, test\. Name one of them: .*/both/SPLIT"):
        list_images(tmp_path / "both")
    assert numbers(list_images(tmp_path / "both" / "test")) == {"a": 1}
    for split in ("train", "test"):
        one.to_parquet(tmp_path / "files" / f"{split}-0.parquet")
    source = f"datasets:{tmp_path / 'files'}"
    with pytest.raises(InputDataError, match=r"has the splits train, test\. Name one of them: datasets:.*:SPLIT"):
        list_images(source)
    assert numbers(list_images(f"{source}:test")) == {"a": 1}


def test_what_cannot_be_opened_is_refused_with_the_library_s_reason(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(InputDataError, match=r"a\.parquet cannot be opened as a table of images: .*Check the path or"):
        list_images(tmp_path / "a.parquet")
    with pytest.raises(InputDataError, match=r"^datasets:not/there cannot be opened as a table of images: "):
        list_images("datasets:not/there")


def test_running_out_of_memory_is_no_fault_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(id=["a"], image=stored([1])).save_to_disk(tmp_path / "saved")

    def fail(path: str) -> None:
        raise MemoryError

    monkeypatch.setattr(datasets, "load_from_disk", fail)
    with pytest.raises(MemoryError):
        list_images(tmp_path / "saved")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"id": ["a"]}, {}, r"No column of .* holds images; it has id\. Give --image-column"),
        ({"id": ["a"]}, {"image_column": "x"}, r"has no column 'x'\. --image-column names one of: id, image"),
        ({"id": ["a"]}, {"image_column": "id"}, r"'id' of .* and no images\. --image-column names one of: id, image"),
        ({"id": ["a"]}, {"id_column": "x"}, r"has no column 'x'\. --id-column names one of: id, image"),
        ({"id": [0.5]}, {}, r"'id' of .* and no ids\. Give a column of text or whole .* --id-column, one of: id"),
        ({"id": ["a", None]}, {}, r"Row 1 of .* has no id\. Give a column with ids as --id-column, one of: id, image"),
        ({"file_name": ["a", None]}, {}, r"Row 1 of .* has no id"),
        ({"id": ["a", "A"]}, {}, r"ids 'a' and 'A': .*: row 0 of column 'image' and .*: row 1 of column 'image'"),
    ],
)
def test_columns_that_will_not_do_are_refused_with_those_there_are(
    tmp_path: Path, columns: dict[str, list[Any]], options: dict[str, str], message: str
) -> None:
    rows = len(next(iter(columns.values())))
    images = {} if "holds images" in message else {"image": stored(range(rows))}
    table(**columns, **images).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputDataError, match=message):
        list_images(tmp_path / "saved", **options)


def test_a_table_without_any_names_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [png(1)], "text": ["x"]}), tmp_path / "plain.parquet")
    with pytest.raises(
        InputDataError, match=r"no column of ids that is known \(image_id, id, .*no names\. .*one of: jpg, text"
    ):
        list_images(tmp_path / "plain.parquet")


def test_few_tables_are_kept_open() -> None:
    assert image_tables._table.cache_info().maxsize == image_tables.OPEN_TABLES
