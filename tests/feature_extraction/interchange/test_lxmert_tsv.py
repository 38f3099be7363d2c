"""Tab-separated files of region features: read line by line, and what is wrong with some lines."""

from __future__ import annotations

import base64
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction.errors import InputDataError
from feature_extraction.interchange import lxmert_tsv
from feature_extraction.interchange.image_arrays import Unusable
from feature_extraction.interchange.importing import import_features
from feature_extraction.interchange.shape import ImportSettings
from feature_extraction.interchange.sources import Sources, open_source

COLUMNS = lxmert_tsv.LXMERT


def opened(path: Path) -> Sources:
    return Sources([open_source(path, "lxmert_tsv")])


def coded(array: Any, dtype: str = "<f4") -> str:
    return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def line(**changes: str) -> str:
    """A line of two regions of width 3."""
    columns = {
        "img_id": "one",
        "img_h": "480",
        "img_w": "640",
        "obj_id": coded([1, 2], "<i8"),
        "obj_conf": coded([0.5, 0.25]),
        "attr_id": coded([3, 4], "<i8"),
        "attr_conf": coded([0.5, 0.25]),
        "num_boxes": "2",
        "boxes": coded([[0, 0, 320, 240], [0, 0, 640, 480]]),
        "features": coded(np.arange(6)),
        **changes,
    }
    return "\t".join(columns[name] for name in COLUMNS)


def written(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes("".join(text + end for text in lines).encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\n\r\n"])
def test_line_ends_do_not_matter(end: str, tmp_path: Path) -> None:
    sources = opened(written(tmp_path / "a.tsv", line(), line(img_id="two"), end=end))
    assert sources.ids == ["one", "two"]
    assert sources.read("two")["features"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert sources.read("two")["boxes"].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 1, 1]]


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(line())
    assert opened(tmp_path / "a.tsv").read("one")["class_ids"].tolist() == [1, 2]


def test_odd_ids_survive(make_regions: Callable[..., Any], write_tsv: Callable[..., Path], tmp_path: Path) -> None:
    ids = [
        "../../up",
        "a/b",
        'say "x"',
        '"',
        '""',
        " blank ",
        "\U0001f600",
        "caf\udce9",
        "nul\0",
        "\u202egnp.x",
        "é",
        "e\u0301",
    ]
    images = make_regions(ids, tokens=2)
    sources = opened(write_tsv(tmp_path / "a.tsv", images))
    assert sources.ids == sorted(ids)
    for image_id in ids:
        assert sources.read(image_id)["features"].tobytes() == images[image_id]["features"].tobytes()


def test_an_id_on_two_lines_is_refused_with_both(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", line(), line(img_id="two"), line())
    with pytest.raises(InputDataError, match=f"Image id 'one' stands twice, in line 1 of {path} and in line 3. An id"):
        opened(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "%%%" + coded(np.arange(6))[3:]}, "features are no base64: Only base64 data is allowed"),
        ({"features": coded(np.arange(6))[:-1]}, "21 bytes of features do not make 2 regions of float32"),
        ({"features": coded(np.arange(5))}, "20 bytes of features do not make 2 regions of float32"),
        ({"features": ""}, "features are float32 of shape (2, 0), expected floating point of shape (V, D)"),
        ({"features": coded([np.nan] * 6)}, "features hold NaN or infinite numbers"),
        ({"boxes": coded(np.arange(4))}, "boxes are float32 (2, 2), expected float32 (2, 4)"),
        (
            {"boxes": coded(np.arange(5))},
            "20 bytes of boxes do not make 2 regions of float32",
        ),
        ({"boxes": coded(np.full(8, 700))}, "boxes reach from 1.094 to 1.458 of the image's width and height"),
        ({"obj_id": coded([1] * 4, "<i8")}, "class_ids are int64 (4,), expected int64 (2,)"),
        ({"obj_id": coded([1])}, "4 bytes of obj_id do not make 2 regions of int64"),
        ({"attr_conf": "A"}, "attr_conf are no base64: "),
        ({"num_boxes": "0"}, "24 bytes of features do not make 0 regions of float32"),
        ({"num_boxes": "-2"}, "num_boxes is '-2', expected a whole number"),
        ({"num_boxes": "two"}, "num_boxes is 'two', expected a whole number"),
        ({"img_h": "480.5"}, "img_h is '480.5', expected a whole number"),
        ({"img_w": ""}, "img_w is '', expected a whole number"),
        ({"img_w": "0"}, "the image size is 480 x 0 pixels (height x width), expected at least 1 x 1"),
        (
            {"boxes": coded(np.arange(8)) + "\t"},
            "11 columns, expected 10: img_id, img_h, img_w, obj_id, obj_conf",
        ),
    ],
)
def test_odd_lines_are_unusable_and_named(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", line(img_id="good"), line(**changes))
    sources = opened(path)
    with pytest.raises(Unusable, match=re.escape(message)):
        sources.read("one")
    assert sources.place("one") == f"{path}, line 2 (image 'one')"
    assert sources.read("good")["features"].shape == (2, 3)


@pytest.mark.parametrize("cut", [1, 10, 30, 80])
def test_a_file_that_was_cut_off_is_noticed(cut: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", line(img_id="good"), line())
    path.write_bytes(path.read_bytes()[: -len(line()) - 1 + cut])
    if cut == 1:
        with pytest.raises(InputDataError) as caught:
            opened(path)
        assert str(caught.value) == (
            f"Line 2 of {path} has no tab: 'o'. The file was cut off or damaged: get it anew, or delete this line"
        )
    else:
        assert re.match(r"\d columns, expected 10", str(opened(path).look("one")))


def test_a_cut_within_the_last_features_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", line())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Unusable, match="18 bytes of features do not make 2 regions of float32"):
        opened(path).read("one")


def test_other_text_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", "question\tanswer", "how many?\ttwo")
    with pytest.raises(InputDataError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{path} is no file of region features: line 1 has 2 columns between tabs, expected 10 as LXMERT has "
        f"({', '.join(COLUMNS)}) or 6 as bottom-up attention has. Check --source and --format"
    )


def test_endless_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.tsv", line(), "x" * 2000)
    monkeypatch.setattr(lxmert_tsv, "LONGEST_LINE", 1000)
    with pytest.raises(InputDataError, match=r"Line 2 of .* has more than 1,000 bytes. That is no file of region"):
        opened(path)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", line(), line(img_id="two"))
    sources = opened(path)
    written(path, line(img_id="two"), line(img_id="one"))
    with pytest.raises(Unusable, match="the line is of another image now; the file changed while it was read"):
        sources.read("one")


def test_a_file_is_never_whole_in_memory(
    make_regions: Callable[..., Any], write_tsv: Callable[..., Path], tmp_path: Path
) -> None:
    ids = [f"{number:04d}" for number in range(60)]
    path = write_tsv(tmp_path / "a.tsv", make_regions(ids, width=2048))
    longest = path.stat().st_size / len(ids)  # about 400 kB
    import_features([path], tmp_path / "warm", ImportSettings("a", shard_size=2), say=lambda text: None)
    tracemalloc.start()
    try:
        import_features([path], tmp_path / "store", ImportSettings("a", shard_size=2), say=lambda text: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * longest  # of 60: a line, its columns, its arrays, and a shard of two images with its copies
