"""Features as other tools write them, in their own layouts."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

Image = dict[str, np.ndarray]  # by VL-T5's names
Images = Mapping[str, Image]

LXMERT = [
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
]
BOTTOM_UP = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]


@pytest.fixture(scope="session")
def make_regions() -> Callable[..., dict[str, Image]]:
    """Random images of a detector, by id; the number of regions may differ from image to image."""

    def make(ids: list[str], *, tokens: int | list[int] = 36, width: int = 8, seed: int = 0) -> dict[str, Image]:
        random = np.random.default_rng(seed)
        counts = [tokens] * len(ids) if isinstance(tokens, int) else tokens
        images = {}
        for image_id, count in zip(ids, counts, strict=True):
            width_height = random.integers(100, 640, 2)
            corners = np.sort(random.random((count, 2, 2)), axis=1) * width_height
            images[image_id] = {
                "features": random.normal(size=(count, width)).astype(np.float32),
                "boxes": corners.reshape(count, 4).astype(np.float32),
                "obj_id": random.integers(0, 1600, count),
                "obj_conf": random.random(count, dtype=np.float32),
                "attr_id": random.integers(0, 400, count),
                "attr_conf": random.random(count, dtype=np.float32),
                "img_w": np.asarray(width_height[0]),
                "img_h": np.asarray(width_height[1]),
            }
        return images

    return make


@pytest.fixture(scope="session")
def write_vl_t5() -> Callable[[Path, Images], Path]:
    """One HDF5 file with a group of eight datasets for each image."""

    def write(path: Path, images: Images) -> Path:
        with h5py.File(path, "w") as file:
            for image_id, image in images.items():
                group = file.create_group(image_id)
                for name, array in image.items():
                    group.create_dataset(name, data=array)
        return path

    return write


@pytest.fixture(scope="session")
def write_tsv() -> Callable[..., Path]:
    """A file as csv.DictWriter writes it, in LXMERT's or bottom-up attention's columns."""

    def write(path: Path, images: Images, columns: list[str] | None = None) -> Path:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, columns or LXMERT, delimiter="\t", extrasaction="ignore")
            for image_id, image in images.items():
                coded = {name: base64.b64encode(array.tobytes()).decode() for name, array in image.items()}
                row: dict[str, Any] = {
                    "img_id": image_id,
                    "image_id": image_id,
                    "img_h": image["img_h"].item(),
                    "image_h": image["img_h"].item(),
                    "img_w": image["img_w"].item(),
                    "image_w": image["img_w"].item(),
                    "num_boxes": len(image["features"]),
                    "objects_id": coded["obj_id"],
                    "objects_conf": coded["obj_conf"],
                    "attrs_id": coded["attr_id"],
                    "attrs_conf": coded["attr_conf"],
                    "boxes": coded["boxes"],
                    "features": coded["features"],
                }
                writer.writerow(row)
        return path

    return write


@pytest.fixture(scope="session")
def write_vl_adapter() -> Callable[[Path, Mapping[str, np.ndarray]], Path]:
    """A folder with one HDF5 file for each image."""

    def write(folder: Path, features: Mapping[str, np.ndarray]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for image_id, array in features.items():
            with h5py.File(folder / f"{image_id}.h5", "w") as file:
                file.create_group(image_id.encode(errors="surrogateescape"))["features"] = array
        return folder

    return write


@pytest.fixture(scope="session")
def write_npz() -> Callable[[Path, Images], Path]:
    """A folder with one .npz file for each image."""

    def write(folder: Path, images: Images) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for image_id, image in images.items():
            np.savez(folder / f"{image_id}.npz", **image)
        return folder

    return write


@pytest.fixture(scope="session")
def bottom_up_columns() -> list[str]:
    """The columns of bottom-up attention's files."""
    return BOTTOM_UP


@pytest.fixture
def quiet() -> Callable[[str], None]:
    """Says nothing."""
    return lambda line: None
