"""The command line ``python -m dept_vl.extract``."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dept_vl.command_line import run
from dept_vl.extract import main
from feature_extraction import FeatureStore
from feature_extraction.errors import InputDataError

IMAGES, SHARDS = 60, 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    source = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = source.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A random tower of 100,000 parameters, and many small shards."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    return [
        "--features=timm/test_efficientnet",
        f"features.weights={weights}",
        "features.image_size=32",
        "features.layer=2",
        "features.batch_size=2",
        "features.shard_size=3",
        "features.workers=2",
    ]


def arguments(images: Path, output: Path, settings: list[str]) -> list[str]:
    return ["--images", str(images), "--output", str(output), *settings]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(images: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of the undisturbed store."""
    output = tmp_path_factory.mktemp("whole") / "store"
    main(arguments(images, output, settings))
    return contents(output)


def start(images: Path, output: Path, settings: list[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dept_vl.extract", *arguments(images, output, settings)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# --- the command


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from dept_vl.extract import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "efficientnet_lite0" in found.stdout
    assert "exit codes: 0 done" in found.stdout


def test_the_command_makes_a_store(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(images, tmp_path / "store", settings))
    store = FeatureStore.open(tmp_path / "store")
    store.verify()
    assert len(store) == IMAGES
    assert store.settings.shard_size == 3
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"60 images, 16 visual tokens of width 32 each, 20 shards, about 0\.1 MB in ", lines[0])
    assert re.match(r".*store is finished: 60 images, 0 rejected; 60 extracted in [\d.]+ s \(\d+ images/s\)", lines[-1])


def test_the_same_command_on_a_finished_store_says_so(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(images, tmp_path / "store", settings))
    capsys.readouterr()
    assert run(main, arguments(images, tmp_path / "store", settings)) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("store is finished already: 60 images, 0 rejected")


def test_a_dry_run_writes_nothing(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--dry-run", *arguments(images, tmp_path / "store", settings), "features.grid=2"])
    assert list(tmp_path.iterdir()) == []
    assert "60 images, 4 visual tokens of width 32 each" in capsys.readouterr().err


def test_rejected_images_are_counted_and_listed(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = tmp_path / "list.txt"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    listing.write_text(f"{images / '000.png'}\nbroken.jpg\n")
    assert run(main, ["--max-rejected-fraction=0", *arguments(listing, tmp_path / "store", settings)]) == 3
    assert "error: 1 of 2 images cannot be used; at most 0" in capsys.readouterr().err
    assert run(main, arguments(listing, tmp_path / "store", settings)) == 0
    assert "2 images, 1 rejected" in capsys.readouterr().err
    assert json.loads((tmp_path / "store" / "rejected.jsonl").read_text())["id"] == "broken"


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["features.image_sice=3"], 2, "unknown key 'features.image_sice'. Did you mean 'features.image_size'?"),
        (["--features=timm/nothing_like_this"], 2, "features.backbone is timm/nothing_like_this, but timm"),
        (["--images=/nowhere"], 3, "/nowhere is neither a folder nor a .txt list of images"),
        (["features.layer=1"], 4, "holds other features than this command would write"),
        (["--colour=red"], 2, "unrecognized arguments: --colour=red. See: python -m dept_vl.extract --help"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(
    images: Path,
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    code: int,
    message: str,
) -> None:
    if code == 4:
        main(arguments(images, tmp_path / "store", settings))
    assert run(main, [*arguments(images, tmp_path / "store", settings), *extra]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_damaged_store_is_repaired_as_its_message_says(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    output = tmp_path / "store"
    main(arguments(images, output, settings))
    damaged = output / "shard-00007.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 4
    damaged.write_bytes(data)
    damaged.unlink()  # "To write it anew, delete this file and run the extraction again"
    main(arguments(images, output, settings))
    assert contents(output) == whole


# --- signals and kills


def test_sigterm_stops_between_shards_and_the_same_command_goes_on(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    output = tmp_path / "store"
    with start(images, output, settings) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "/20 shards" in line:
                os.killpg(process.pid, signal.SIGTERM)  # as batch systems do: the workers get it too
                break
        rest = process.stderr.read()
    if process.returncode != 0:  # it was not at the last shard already
        assert process.returncode == 75
        assert "SIGTERM received: saving, then stopping" in rest
        assert re.search(r"stopped: \d+/20 shards of .*store are done\. The same command goes on", rest)
        with pytest.raises(InputDataError, match="not finished"):
            FeatureStore.open(output)
    with pytest.raises(ProcessLookupError):  # no decoding process is left
        os.killpg(process.pid, 0)
    main(arguments(images, output, settings))
    assert contents(output) == whole


def test_three_random_kills_end_in_the_same_store(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    kill_at_random(3, images, settings, tmp_path, whole)


@pytest.mark.slow
def test_twenty_random_kills_end_in_the_same_store(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    kill_at_random(20, images, settings, tmp_path, whole)


def kill_at_random(kills: int, images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Kill -9 the command again and again; what is nearly done may end, is compared, and begun anew."""
    chance = random.Random(0)
    output = tmp_path / "store"
    killed = 0
    while killed < kills or output.exists():
        with start(images, output, settings) as process:
            assert process.stderr is not None
            process.stderr.readline()  # the tower stands; from here on the store is written
            if killed < kills and shards_of(output) < SHARDS - 5:
                wait_for_shards(process, output, chance.randint(0, 4))
                time.sleep(chance.random() * 0.02)
                process.kill()
                killed += 1
                process.wait()
                see_no_damage(output)
            process.stderr.read()  # ends when the decoding processes have seen that they are alone
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            assert contents(output) == whole
            shutil.rmtree(output)


def shards_of(output: Path) -> int:
    return len(list(output.glob("*.safetensors")))


def wait_for_shards(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Until the process has written so many more shards, or is done."""
    enough = shards_of(output) + count
    while process.poll() is None and shards_of(output) < enough:
        time.sleep(0.001)


def see_no_damage(output: Path) -> None:
    try:
        store = FeatureStore.open(output)
    except InputDataError:  # not finished, or nothing there yet
        return
    store.verify()


def test_a_full_disk_ends_with_code_six_and_nothing_is_lost(
    images: Path,
    settings: list[str],
    tmp_path: Path,
    whole: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, count = os.write, 0

    def fill_up(descriptor: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feature_extraction.durable.os.write", fill_up)
        assert run(main, arguments(images, tmp_path / "store", settings)) == 6
    assert "error: Disk full writing" in capsys.readouterr().err
    assert run(main, arguments(images, tmp_path / "store", settings)) == 0
    assert contents(tmp_path / "store") == whole
