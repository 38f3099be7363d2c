from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dept_vl.bench.extraction import PHOTO, main, make_photos
from feature_extraction.errors import InputDataError
from feature_extraction.images.decoding import decode_image

STAGES = (
    "decode, 1 process",
    "resize, 1 process",
    "decode and resize, ",
    "backbone, from ready pixels",
    "write",
    "whole",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings of a tower that takes a millisecond."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    chosen = {"backbone": "timm/test_efficientnet", "weights": weights, "image_size": 32, "layer": 2, "grid": 2}
    sizes = {"batch_size": 2, "shard_size": 4}
    return [f"features.{name}={value}" for name, value in {**chosen, **sizes}.items()]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_stages_are_timed(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    main(["--count", "5", "--folder", str(tmp_path), *tiny, f"features.workers={workers}"])
    heading, columns, *rows = capsys.readouterr().out.splitlines()
    assert heading.startswith("5 images, timm/test_efficientnet at 32 pixels, ")
    assert columns.split() == ["stage", "images/s", "ms/image"]
    last = ["share of the decode limit reached", *["peak memory of a worker"] * bool(workers)]
    assert all(row.startswith(name) for row, name in zip(rows, [*STAGES, *last], strict=True))
    assert all(float(row.split()[-2].replace(",", "")) > 0 for row in rows[: len(STAGES)])
    assert list(tmp_path.iterdir()) == []


def test_own_images_are_timed_but_for_those_that_are_damaged(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "damaged.jpg").touch()
    main(["--images", str(tmp_path / "photos"), "--count", "4", *tiny])
    assert capsys.readouterr().out.startswith("4 images, ")


def test_images_of_which_none_can_be_decoded_are_refused(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "damaged.jpg").touch()
    with pytest.raises(
        InputDataError, match=r"None of the images can be decoded\. See why: python -m dept_vl\.extract"
    ):
        main(["--images", str(tmp_path), *tiny])


def test_made_photos_are_as_large_as_coco_s(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 2)
    first, second = sorted((tmp_path / "photos").iterdir())
    assert decode_image(first).shape == (*PHOTO, 3)
    assert 100_000 < first.stat().st_size < 200_000
    assert first.read_bytes() != second.read_bytes()
