from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from dept_vl.formats.submission import archive, check_zip, zip_content

VAL, TEST = "captions_val2014_<alg>_results.json", "captions_test2014_<alg>_results.json"
GOOD = {"captions_val2014_x_results.json": b"good", "captions_test2014_x_results.json": b"good"}
FIRST = "captions_val2014_x_results.json"


def check(content: bytes) -> list[str]:
    return [] if content == b"good" else ["is bad"]


def packed(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as target:
        for name, text in files.items():
            target.writestr(name, text)
    return content.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.zip"


def faults(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return check_zip(path, {VAL: check, TEST: check})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_good_archive_has_no_fault(path: Path, method: int) -> None:
    assert faults(path, packed(GOOD, method)) == []
    assert faults(path, packed(dict(reversed(GOOD.items())), method)) == []


def test_an_archive_that_we_pack_is_good_and_always_the_same_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zip_content(GOOD)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert zip_content(GOOD) == content
    assert faults(path, content) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("__MACOSX/._" + FIRST, "files that macOS adds (take them out with zip -d): 1 (__MACOSX/._" + FIRST + ")"),
        (".DS_Store", "files that macOS adds (take them out with zip -d): 1 (.DS_Store)"),
        ("/" + FIRST, "absolute paths or paths with ..: 1 (/" + FIRST + ")"),
        ("../" + FIRST, "absolute paths or paths with ..: 1 (../" + FIRST + ")"),
        ("C:" + FIRST, "absolute paths or paths with ..: 1 (C:" + FIRST + ")"),
        ("results/", "files in a folder, which belong at the archive's top (pack with zip -j): 1 (results/)"),
        ("readme.txt", f"files other than {VAL} and {TEST}: 1 (readme.txt)"),
        ("captions_val2014_y_results.json", f"more than one {VAL}: 1 (captions_val2014_y_results.json)"),
    ],
)
def test_what_does_not_belong_there_is_named_and_nothing_else(path: Path, name: str, fault: str) -> None:
    assert faults(path, packed({**GOOD, name: b"good"})) == [fault]


def test_a_name_twice_is_a_fault(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns of the second, but writes it
        with zipfile.ZipFile(path, "w") as target:
            for name in (*GOOD, FIRST):
                target.writestr(name, b"good")
    assert check_zip(path, {VAL: check, TEST: check}) == [f"more than one {VAL}: 1 ({FIRST})"]


def test_a_folder_around_both_files_is_named(path: Path) -> None:
    found = faults(path, packed({f"results/{name}": text for name, text in GOOD.items()}))
    assert found[0].startswith(
        "files in a folder, which belong at the archive's top (pack with zip -j): 2 (results/cap"
    )
    assert found[1:] == [f"no {VAL} and no {TEST} at the archive's top"]


def test_a_missing_file_is_named(path: Path) -> None:
    assert faults(path, packed({FIRST: b"good"})) == [f"no {TEST} at the archive's top"]


def test_different_algorithms_are_named(path: Path) -> None:
    found = faults(path, packed({FIRST: b"good", "captions_test2014_y_results.json": b"good"}))
    assert found == ["the names of its files differ in <alg>: x and y"]


def test_faults_of_a_file_carry_its_name(path: Path) -> None:
    assert faults(path, packed({**GOOD, FIRST: b"bad"})) == [f"{FIRST}: is bad"]


def test_what_is_no_zip_and_what_is_cut_off_are_named(path: Path) -> None:
    again = f"Pack {VAL} and {TEST} again"
    assert faults(path, b"[]") == [f"is no zip archive (File is not a zip file). {again}"]
    (found,) = faults(path, packed(GOOD)[:-30])
    assert found == f"is a damaged or cut off zip archive (File is not a zip file). {again}"


def test_a_changed_byte_is_noticed(path: Path) -> None:
    (found,) = faults(path, packed(GOOD, zipfile.ZIP_STORED).replace(b"good", b"goad", 1))
    assert found == f"{FIRST}: is damaged (Bad CRC-32 for file '{FIRST}'). Pack it again"


def test_an_encrypted_file_is_named(path: Path) -> None:
    content = bytearray(packed(GOOD))
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory's first entry
    assert faults(path, bytes(content)) == [f"{FIRST}: is encrypted. Pack it without a password"]


def test_an_unusual_packing_is_named(path: Path) -> None:
    found = faults(path, packed(GOOD, zipfile.ZIP_BZIP2))
    assert found[0] == f"{FIRST}: is not packed by deflate, which every zip program does by default"


def test_a_file_of_excessive_size_is_not_unpacked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 4)
    assert faults(path, packed({**GOOD, FIRST: b"large"})) == [
        f"{FIRST}: has 5 bytes unpacked, far more than such a file takes"
    ]
