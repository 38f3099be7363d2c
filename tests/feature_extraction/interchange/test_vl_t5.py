"""VL-T5's HDF5 files: what is an image in them, and what is wrong with some."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from feature_extraction.errors import InputDataError
from feature_extraction.interchange.image_arrays import Unusable
from feature_extraction.interchange.sources import Sources, open_source

FEATURES = np.ones((4, 2), np.float32)


def opened(path: Path) -> Sources:
    return Sources([open_source(path, "vl_t5")])


def test_ids_with_slashes_are_groups_within_groups(tmp_path: Path) -> None:
    ids = ["plain", "../up", "one/two/three", "one/two", "features", "box/boxes"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ids:
            file[f"{name}/features"] = FEATURES
        file["number"] = 3  # beside the images
    assert opened(tmp_path / "a.h5").ids == sorted(
        ("plain", "../up", "one/two/three", "one/two", "features", "box/boxes")
    )


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[b"\xff\xfe.jpg"] = h5py.SoftLink("/nowhere")
        file.create_group(b"caf\xe9")["features"] = FEATURES
    sources = opened(tmp_path / "a.h5")
    assert sources.ids == ["caf\udce9", "\udcff\udcfe.jpg"]
    assert sources.read("caf\udce9")["features"].tobytes() == FEATURES.tobytes()


def test_links_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["image/features"] = FEATURES
    (tmp_path / "secret.bin").write_bytes(b"x" * 32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good/features"] = FEATURES
        file["soft"] = h5py.SoftLink("/good")
        file["outside"] = h5py.ExternalLink("secret.h5", "/image")
        file.create_group("inside")["features"] = h5py.ExternalLink("secret.h5", "/image/features")
        outside = [(str(tmp_path / "secret.bin"), 0, 32)]
        file.create_group("storage").create_dataset("features", (4, 2), np.float32, external=outside)
        layout = h5py.VirtualLayout((4, 2), np.float32)
        layout[:] = h5py.VirtualSource("secret.h5", "image/features", (4, 2))
        file.create_group("virtual").create_virtual_dataset("features", layout)
    sources = opened(tmp_path / "a.h5")
    assert {image_id: str(sources.look(image_id)) for image_id in sources.ids if image_id != "good"} == {
        "soft": "'soft' is a link to another place, which is not followed",
        "outside": "'outside' is a link to another place, which is not followed",
        "inside": "'features' is a link to another place, which is not followed",
        "storage": "features is kept in another file, which is not followed",
        "virtual": "features is kept in another file, which is not followed",
    }
    with pytest.raises(Unusable, match="'soft' is a link"):
        sources.read("soft")


def test_links_that_lead_round_in_circles_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["folder/image/features"] = FEATURES
        file["folder/again"] = file["folder"]
        file["folder/top"] = file["/"]
    assert opened(tmp_path / "a.h5").ids == ["folder/image"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features", None, "no features; found boxes, img_h, img_w"),
        ("features", "text", "features is no array of numbers"),
        ("features", np.ones((4, 2, 1), np.float32), "features are float32 of shape (4, 2, 1), expected floating"),
        ("boxes", np.zeros((40, 4), np.float32), "boxes have shape (40, 4), with 4 visual tokens"),
        ("boxes", np.zeros((1, 4), np.float32), "boxes are float32 (1, 4), expected float32 (4, 4)"),
        ("img_w", "640", "img_w is no array of numbers"),
    ],
)
def test_odd_images_are_unusable(name: str, value: Any, message: str, tmp_path: Path) -> None:
    image = {"features": FEATURES, "boxes": np.zeros((4, 4), np.float32), "img_w": 640, "img_h": 480, name: value}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, array in image.items():
            if array is not None:
                file[f"a/{key}"] = array
    with pytest.raises(Unusable, match=re.escape(message)):
        opened(tmp_path / "a.h5").read("a")


def test_an_empty_group_is_an_image_without_features(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("a")
    assert str(opened(tmp_path / "a.h5").look("a")) == "no features; found nothing"


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(
    keep: float, make_regions: Callable[..., Any], write_vl_t5: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_vl_t5(tmp_path / "a.h5", make_regions([str(number) for number in range(20)]))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(InputDataError, match=r"a.h5: no HDF5 file, or damaged \([\d,]+ bytes; .*\). It may not be"):
        open_source(path, "vl_t5")


def test_damage_inside_a_file_is_told_of_its_image_only(
    make_regions: Callable[..., Any], write_vl_t5: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_vl_t5(tmp_path / "a.h5", make_regions(["a", "b", "c"]))
    with h5py.File(path) as file:
        place = file["b/boxes"].id
        start = h5py.h5o.get_info(place).addr
    data = bytearray(path.read_bytes())
    data[start : start + 8] = b"\xff" * 8  # the head of a dataset
    path.write_bytes(data)
    sources = opened(path)
    with pytest.raises(Unusable, match=r"cannot be read \(\w+: .*"):
        sources.read("b")
    assert sources.read("c")["features"].shape == (36, 8)
