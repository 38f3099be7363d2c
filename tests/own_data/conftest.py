"""Tables of the four tasks, and a folder of images that nobody decodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from dept_vl.own_data.rows import OwnRow
from feature_extraction.images.decoding import ImageFile


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images a to h; d lies deeper, and e has a suffix of its own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "more/d.jpg", "e.PNG", "f.jpg", "g.jpg", "h.jpg"):
        (folder / name).touch()
    return folder


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[[Iterable[object]], Path]:
    """Objects as a JSONL file."""

    def write(rows: Iterable[object]) -> Path:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def make_row() -> Callable[..., OwnRow]:
    """Sound rows: so many of each image."""

    def make(number: int, *images: str, answers: tuple[str, ...] = ("yes",), **more: str) -> OwnRow:
        fields = {"own_id": str(number), "text": f"question {number}?", "split": None} | more
        files = tuple(ImageFile(name, Path(f"{name}.jpg")) for name in images)
        return OwnRow(number=number, line=number, images=files, answers=answers, **fields)  # type: ignore[arg-type]

    return make
