"""The command line ``python -m dept_vl.import_features``, and training on what it brings in."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dept_vl.command_line import run
from dept_vl.evaluate import main as evaluate_main
from dept_vl.import_features import main
from dept_vl.train import main as train_main
from feature_extraction import FeatureStore

TOKENS, WIDTH = 36, 8


def write_h5(path: Path, ids: list[str]) -> Path:
    """A file as VL-T5 has it, equal for equal ids."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for image_id in ids:
            group = file.create_group(image_id)
            corners = np.sort(generator.random((TOKENS, 2, 2)), axis=1) * [640, 480]
            features = generator.normal(size=(TOKENS, WIDTH)).astype(np.float32)
            features[:, int(image_id[-1]) % WIDTH] += 4  # which image it is
            group["features"] = features
            group["boxes"] = corners.reshape(TOKENS, 4).astype(np.float32)
            group["obj_id"] = np.arange(TOKENS)
            group["attr_id"] = np.arange(TOKENS)
            group["obj_conf"] = generator.random(TOKENS, dtype=np.float32)
            group["attr_conf"] = generator.random(TOKENS, dtype=np.float32)
            group["img_w"], group["img_h"] = 640, 480
    return path


def write_tsv(path: Path, counts: dict[str, int]) -> Path:
    """A file as bottom-up attention has it, with so many regions of each image."""
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for image_id, count in counts.items():
            corners = np.sort(generator.random((count, 2, 2)), axis=1) * [640, 480]
            features = generator.normal(size=(count, WIDTH)).astype("<f4")
            features[:, int(image_id[-1]) % WIDTH] += 4
            arrays = [corners.reshape(count, 4).astype("<f4"), features]
            texts = [base64.b64encode(array.tobytes()).decode() for array in arrays]
            file.write("\t".join([image_id, "640", "480", str(count), *texts]) + "\n")
    return path


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    return write_h5(tmp_path / "val2014_obj36.h5", [f"image_{number:04d}" for number in range(10)])


def arguments(source: Path, output: Path, *more: str) -> list[str]:
    return ["--source", str(source), "--output", str(output), "--name", "butd_vg", "--shard-size", "4", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dept_vl.import_features", *arguments(source, output, *more)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# --- the command


def test_help_answers_without_torch_and_h5py() -> None:
    code = (
        "import sys; from dept_vl.import_features import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(bool({'torch', 'h5py', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lxmert_tsv" in found.stdout
    assert "exit codes: 0 done" in found.stdout


def test_the_work_needs_no_torch(h5: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from dept_vl.import_features import main\n"
        f"main({arguments(h5, tmp_path / 'store')!r}); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_the_command_makes_a_store_and_says_so_when_there_is_one(
    h5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, arguments(h5, tmp_path / "store")) == 0
    store = FeatureStore.open(tmp_path / "store")
    store.verify()
    assert len(store) == 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"Listing the images of {h5} (vl_t5)"
    assert re.match(
        r"10 images, 36 visual tokens of width 8 each, float32, boxes: regions, 3 shards, about 0\.0 MB in ", lines[1]
    )
    assert re.match(
        r".*store is finished: 10 images, 0 rejected; 10 imported in [\d.]+ s \(\d+ images/s, \d+ MB/s\)", lines[-1]
    )
    assert run(main, arguments(h5, tmp_path / "store")) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("store is finished already: 10 images, 0 rejected")


def test_a_dry_run_writes_nothing_and_names_what_cannot_be_used(
    h5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(h5, "a") as file:
        del file["image_0003/features"]
    assert run(main, arguments(h5, tmp_path / "store", "--dry-run", "--max-rejected-fraction", "0.1")) == 0
    assert not (tmp_path / "store").exists()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"  cannot be used: {h5}, group 'image_0003': no features; found attr_conf, attr_id,")


def test_images_that_were_rejected_are_tried_again_when_that_is_said(
    h5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(h5, "a") as file:
        features = file["image_0005/features"]
        good = features[0, 0]
        features[0, 0] = np.nan
    assert run(main, arguments(h5, tmp_path / "store")) == 3
    assert (
        f"error: 1 of 10 images cannot be used; at most 0 may be so, and not all. The first: {h5}, group 'image_0005': "
        "features hold NaN or infinite numbers. Get their features anew and run the same command with "
        "--retry-rejected, leave them out of the source, or give a higher --max-rejected-fraction"
    ) in capsys.readouterr().err
    loose = arguments(h5, tmp_path / "store", "--max-rejected-fraction", "0.1")
    assert run(main, loose) == 0
    assert len(FeatureStore.open(tmp_path / "store")) == 9
    with h5py.File(h5, "a") as file:
        file["image_0005/features"][0, 0] = good
    assert run(main, [*loose, "--retry-rejected"]) == 0
    assert "1 shards with rejected images are done again" in capsys.readouterr().err
    assert len(FeatureStore.open(tmp_path / "store")) == 10


def test_damage_is_repaired_from_the_source(h5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, arguments(h5, tmp_path / "store")) == 0
    whole = contents(tmp_path / "store")
    shard = tmp_path / "store" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert run(main, arguments(h5, tmp_path / "store", "--repair")) == 0
    assert "3 of 3 shards, 10 images, 0 rejected, 0.0 MB, 1 fault" in capsys.readouterr().err
    assert contents(tmp_path / "store") == whole
    assert run(main, arguments(h5, tmp_path / "store", "--repair", "--visual-tokens", "40")) == 4
    assert "holds other features than this command would write" in capsys.readouterr().err
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--format", "hdf5"], 2, "--format is 'hdf5'; it is one of vl_t5 ("),
        (["--boxes", "cells"], 2, "--boxes is cells, but the features have boxes of their own. Leave it out"),
        (["--format", "arrays"], 3, "is not a folder with a .npy or .npz file for each image. Check --source and --fo"),
        (["--colour=red"], 2, "unrecognized arguments: --colour=red. See: python -m dept_vl.import_features --help"),
        (["--shard-size", "many"], 2, "argument --shard-size: invalid int value: 'many'"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(
    h5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    assert run(main, arguments(h5, tmp_path / "store", *more)) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "store").exists()


# --- stopped from outside


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose import takes a second, in 100 shards."""
    folder = tmp_path_factory.mktemp("large")
    return write_h5(folder / "large.h5", [f"image_{number:04d}" for number in range(400)])


@pytest.fixture(scope="module")
def whole(large: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of the undisturbed store."""
    output = tmp_path_factory.mktemp("whole") / "store"
    main(arguments(large, output))
    return contents(output)


def wait_for_shards(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while len(list(output.glob("shard-*.safetensors"))) < count and process.poll() is None:
        assert time.monotonic() < until, "no shards"
        time.sleep(0.002)


def test_sigterm_stops_by_exit_code_75_and_the_same_command_goes_on(
    large: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(large, tmp_path / "store")
    wait_for_shards(tmp_path / "store", 3, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "SIGTERM received: saving, then stopping" in errors
    assert re.search(r"stopped: \d+/100 shards of .*store are done. The same command goes on", errors)
    assert run(main, arguments(large, tmp_path / "store")) == 0
    assert re.search(r"Resuming: \d+/100 shards done", capsys.readouterr().err)
    assert contents(tmp_path / "store") == whole


def test_killed_at_random_it_ends_in_the_same_bytes(large: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    dice = random.Random(0)
    for _ in range(3):
        process = start(large, tmp_path / "store")
        wait_for_shards(tmp_path / "store", dice.randint(1, 60), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    main(arguments(large, tmp_path / "store"))
    assert contents(tmp_path / "store") == whole


def test_two_processes_share_the_work(large: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    processes = [start(large, tmp_path / "store") for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert contents(tmp_path / "store") == whole


# --- what it is for


def test_imported_regions_train_and_evaluate(
    tmp_path: Path, train_arguments: Callable[..., list[str]], toy_store: Path
) -> None:
    ids = list(FeatureStore.open(toy_store))
    train_h5 = write_h5(tmp_path / "train.h5", [one for one in ids if "test" not in one])
    test_h5 = write_h5(tmp_path / "test.h5", [one for one in ids if "test" in one])
    main(["--source", str(train_h5), str(test_h5), "--output", str(tmp_path / "store"), "--name", "butd_vg"])
    train_main(train_arguments(tmp_path / "run", store=tmp_path / "store"))
    evaluate_main(["--run", str(tmp_path / "run"), "--split", "test"])
    metrics = json.loads(next((tmp_path / "run").rglob("test/metrics.json")).read_text())
    assert metrics["n"] == 7


def test_imported_regions_of_differing_numbers_train_with_their_masks(
    tmp_path: Path, train_arguments: Callable[..., list[str]], toy_store: Path
) -> None:
    ids = list(FeatureStore.open(toy_store))
    tsv = write_tsv(tmp_path / "adaptive.tsv", {one: 2 + number % 4 for number, one in enumerate(ids)})
    main(["--source", str(tsv), "--output", str(tmp_path / "store"), "--name", "butd_vg"])
    store = FeatureStore.open(tmp_path / "store")
    assert store.visual_tokens == 5
    assert not all(store.read(one).mask.all() for one in store)
    train_main(train_arguments(tmp_path / "run", store=tmp_path / "store"))
    evaluate_main(["--run", str(tmp_path / "run"), "--split", "test"])
