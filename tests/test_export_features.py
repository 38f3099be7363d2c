"""The command line ``python -m dept_vl.export_features``."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dept_vl.command_line import run
from dept_vl.export_features import main
from feature_extraction import FeatureStore
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import more_fields, plan
from feature_extraction.store.writer import StoreWriter

IDS = tuple(f"image_{number:03d}" for number in range(6))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six images of a detector; two of them have fewer regions, and a seventh was rejected."""
    identity = {"backbone": "toy", "visual_tokens": 4, "feature_width": 3, "dtype": "float16"}
    fields = more_fields(("image_size", "mask"), 4)
    manifest = plan(IDS, ExtractionSettings(shard_size=4), identity, more=fields)
    generator = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", manifest) as writer:
        for number in writer.missing:
            ids = IDS[writer.rows(number).start : writer.rows(number).stop]
            images = {
                "features": generator.normal(size=(len(ids), 4, 3)).astype(np.float16),
                "boxes": np.tile(np.array([0, 0.25, 0.5, 1], np.float32), (len(ids), 4, 1)),
                "image_size": np.tile(np.array([480, 640]), (len(ids), 1)),
                "mask": np.ones((len(ids), 4), np.bool_),
            }
            images["mask"][1, 3] = False
            writer.write(number, ids, images, [])
        writer.finish()
    return tmp_path / "store"


def test_help_answers_without_torch_and_h5py() -> None:
    code = (
        "import sys; from dept_vl.export_features import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(bool({'torch', 'h5py', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "VL-T5" in found.stdout


def test_the_command_writes_vl_t5_s_file(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "train2014_obj36.h5"
    assert run(main, ["--store", str(store), "--output", str(output)]) == 0
    with h5py.File(output) as file:
        assert tuple(file) == IDS
        assert file["image_002/boxes"][0].tolist() == [0, 120, 320, 480]
        assert np.array_equal(file["image_002/features"][()], FeatureStore.open(store).read("image_002").features)
    lines = capsys.readouterr().err.splitlines()
    assert re.match(
        r"6 images, 4 visual tokens of width 3 each, about 0\.0 MB in .*train2014_obj36.h5. VL-T5 reads it with "
        r"--n_boxes 4 --feat_dim 3$",
        lines[0],
    )
    assert lines[-2] == "2 images have masked visual tokens; VL-T5 knows no mask, and will see them"
    assert re.match(r".*train2014_obj36.h5 is finished: 6 images in [\d.]+ s$", lines[-1])


def test_a_dry_run_writes_nothing(store: Path, tmp_path: Path) -> None:
    assert run(main, ["--store", str(store), "--output", str(tmp_path / "out.h5"), "--dry-run"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_failures_are_one_line_and_an_exit_code(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, ["--store", str(tmp_path), "--output", str(tmp_path / "out.h5")]) == 3
    assert "is no feature store" in capsys.readouterr().err
    (tmp_path / "out.h5").touch()
    assert run(main, ["--store", str(store), "--output", str(tmp_path / "out.h5")]) == 3
    assert "out.h5 exists. Give a new file as --output, or delete this one" in capsys.readouterr().err
    assert run(main, ["--store", str(store)]) == 2
    assert "required: --output" in capsys.readouterr().err


def test_without_h5py_the_message_says_what_to_install(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name == "h5py" or name.startswith("feature_extraction.interchange"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run(main, ["--store", str(store), "--output", str(tmp_path / "out.h5")]) == 2
    assert "HDF5 files need the package h5py. Install it: pip install 'dept_vl[import]'" in capsys.readouterr().err


def test_a_stop_signal_ends_by_exit_code_75_and_leaves_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = FeatureStore.record

    def stopping(self: FeatureStore, image_id: str) -> dict[str, np.ndarray]:
        if image_id == IDS[2]:
            signal.raise_signal(signal.SIGTERM)
        return read(self, image_id)

    monkeypatch.setattr(FeatureStore, "record", stopping)
    assert run(main, ["--store", str(store), "--output", str(tmp_path / "out.h5")]) == 75
    assert "stopped: The export was not finished, and nothing is left of it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
