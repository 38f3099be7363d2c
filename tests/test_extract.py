"""The command line ``python -m dept_vl.extract``."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dept_vl.command_line import run
from dept_vl.extract import main
from dept_vl.import_features import main as import_features
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


def test_a_dry_run_tries_some_images_and_writes_nothing(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--dry-run", *arguments(images, tmp_path / "store", settings), "features.grid=2"])
    assert list(tmp_path.iterdir()) == []
    planned, tried = capsys.readouterr().err.splitlines()
    assert planned.startswith("60 images, 4 visual tokens of width 32 each")
    assert re.fullmatch(
        r"Tried 4 images from all over: 0 rejected; one process decodes [\d,]+ images/s, the backbone takes [\d,]+\. "
        r"All would take about 0:00:\d\d with features\.workers=2",
        tried,
    )


def test_a_dry_run_sees_that_the_disk_is_too_small(
    images: Path,
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert run(main, ["--dry-run", *arguments(images, tmp_path / "store", settings)]) == 6
    assert "store needs 0.00 GB, but only 0.00 GB are free. Nothing was written: free" in capsys.readouterr().err


def test_a_dry_run_shows_what_would_be_rejected(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    main(["--dry-run", *arguments(tmp_path, tmp_path / "store", settings)])
    tried, rejected = capsys.readouterr().err.splitlines()[1:]
    assert tried.startswith("Tried 1 images from all over: 1 rejected; ")
    assert rejected.startswith(f"  rejected: {tmp_path / 'broken.jpg'} (3 bytes): ")


def test_a_preview_draws_images_from_all_over_before_the_run(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--dry-run", "--preview=3", *arguments(images, tmp_path / "store", settings)])
    names = [f"preview-{number:03d}.png" for number in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "store.preview").iterdir()) == names
    for name in names:
        with Image.open(tmp_path / "store.preview" / name) as picture:
            assert min(picture.size) >= 640  # small images are drawn larger, so that their boxes can be seen
    assert f"Drew {tmp_path / 'store.preview' / names[0]}" in capsys.readouterr().err


def test_parts_of_the_work_are_independent_jobs(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store"
    main(["--shard=1/2", *arguments(images, output, settings)])
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"This job's part of {output} is done; 10 shards are left to other jobs"
    )
    main(["--shard=0/2", *arguments(images, output, settings)])
    assert "store is finished: 60 images" in capsys.readouterr().err
    assert contents(output) == whole


@pytest.mark.parametrize("given", [[], ["--images=x"], ["--output=x"]])
def test_images_and_output_are_needed(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, given) == 2
    assert capsys.readouterr().err == (
        "error: --images and --output are both needed. As in: python -m dept_vl.extract --images DIR --output STORE\n"
    )


def test_strict_tolerates_nothing(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").touch()
    assert run(main, ["--strict", *arguments(tmp_path, tmp_path / "store", settings)]) == 3
    assert "1 of 2 images cannot be used; at most 0 may be so" in capsys.readouterr().err


def test_mended_images_are_tried_again(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "images", tmp_path / "store"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (9, 9), (40 * number, 9, 9)).save(folder / f"{number}.png")
    good = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(good[:20])
    main(arguments(folder, output, settings))
    (folder / "4.png").write_bytes(good)
    main(arguments(folder, output, settings))
    assert len(FeatureStore.open(output)) == 5
    main(["--retry-rejected", *arguments(folder, output, settings)])
    assert "1 shards with rejected images are done again" in capsys.readouterr().err
    main(arguments(folder, tmp_path / "other", settings))
    assert contents(output) == contents(tmp_path / "other")
    assert len(FeatureStore.open(output)) == 6


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
        (["--images=/nowhere"], 3, "There is no /nowhere. --images takes a folder of images"),
        (["features.layer=1"], 4, "holds other features than this command would write"),
        (["--max-rejected-fraction=5"], 2, "--max-rejected-fraction is 5.0; it is a share of the images, from 0 to 1"),
        (["--preview=-1"], 2, "--preview is -1; it is a number of images, 0 or more"),
        (["--shard=2/2"], 2, "--shard is '2/2'; it is i/n with i from 0 to n - 1"),
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


# --- the care of a store


def flip_a_bit(path: Path, place: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_a_sound_store_is_verified(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(images, tmp_path / "store", settings))
    capsys.readouterr()
    assert run(main, ["--verify", str(tmp_path / "store")]) == 0
    assert re.fullmatch(
        r".*store: 20 of 20 shards, 60 images, 0 rejected, 0\.1 MB, 0 faults, contents [0-9a-f]{64}\n",
        capsys.readouterr().err,
    )


def test_a_damaged_store_is_found_out_and_repaired_as_its_message_says(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store"
    main(arguments(images, output, settings))
    flip_a_bit(output / "shard-00007.safetensors")
    (output / "shard-00011.safetensors").unlink()
    capsys.readouterr()
    assert run(main, ["--verify", str(output)]) == 5
    errors = capsys.readouterr().err
    assert "shard-00007.safetensors: expected SHA-256 " in errors
    assert "shard-00011.safetensors: expected " in errors
    assert errors.splitlines()[-1].endswith(f"run: python -m dept_vl.extract --repair {output}")
    assert run(main, ["--repair", str(output)]) == 0
    assert "; 6 extracted in" in capsys.readouterr().err
    assert contents(output) == whole
    assert run(main, ["--repair", str(output)]) == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unfinished_store_is_finished_by_a_repair(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    main(["--shard=0/3", *arguments(images, tmp_path / "store", settings)])
    main(["--repair", str(tmp_path / "store")])
    assert contents(tmp_path / "store") == whole


def test_a_repair_takes_images_and_weights_from_where_they_are_now(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "images")
    weights = next(setting for setting in settings if "weights" in setting).partition("=")[2]
    shutil.copy(weights, tmp_path / "weights.safetensors")
    moved = [setting.replace(weights, str(tmp_path / "weights.safetensors")) for setting in settings]
    output = tmp_path / "store"
    main(arguments(tmp_path / "images", output, moved))
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "weights.safetensors").unlink()
    flip_a_bit(output / "shard-00003.safetensors")
    damaged = contents(output)
    assert run(main, ["--repair", str(output)]) == 3
    assert "There is no " in capsys.readouterr().err
    assert contents(output) == damaged  # nothing is removed that cannot be made anew
    assert run(main, ["--repair", str(output), "--images", str(images), f"features.weights={weights}"]) == 0
    shards = {name: data for name, data in contents(output).items() if name != "manifest.json"}
    assert shards == {name: data for name, data in whole.items() if name != "manifest.json"}


def test_a_repair_with_other_images_removes_nothing(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store"
    main(arguments(images, output, settings))
    flip_a_bit(output / "shard-00003.safetensors")
    before = contents(output)
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    assert run(main, ["--repair", str(output), "--images", str(tmp_path)]) == 4
    assert "holds other features than this command would write" in capsys.readouterr().err
    assert contents(output) == before


def test_a_store_of_imported_features_names_the_command_that_repairs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some arrays").mkdir()
    np.save(tmp_path / "some arrays" / "a.npy", np.ones((4, 8), np.float32))
    store = tmp_path / "store"
    import_features(
        ["--source", str(tmp_path / "some arrays"), "--name", "x", "--boxes", "cells", "--output", str(store)]
    )
    before = contents(store)
    flip_a_bit(store / "shard-00000.safetensors")
    assert run(main, ["--verify", str(store)]) == 5
    capsys.readouterr()
    assert run(main, ["--repair", str(store)]) == 3
    message, command = capsys.readouterr().err.splitlines()[-1].split("run: ")
    assert f"{store} was not extracted from images but imported from the features of another tool. To re" in message
    assert run(import_features, shlex.split(command)[3:]) == 0
    assert contents(store) == before


def test_an_inspection_tells_what_is_in_a_store_and_draws_some_of_it(
    images: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store"
    main(arguments(images, output, settings))
    before = contents(output)
    capsys.readouterr()
    main(["--inspect", str(output)])
    found = capsys.readouterr()
    told = dict(line.split("  ", 1) for line in found.out.splitlines())
    assert told["backbone"].strip() == "timm/test_efficientnet"
    assert told["images"].strip() == "60 with features, 0 rejected, 60 in all"
    assert told["shards"].strip() == "20 of 20, finished"
    sheet = tmp_path / "store.contact_sheet.png"
    assert found.err == f"12 images of it are drawn in {sheet}\n"
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 240
    assert contents(output) == before


def test_the_store_one_stands_in_is_inspected_too(
    images: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(arguments(images, tmp_path / "store", settings))
    monkeypatch.chdir(tmp_path / "store")
    main(["--inspect", "."])
    assert (tmp_path / "store.contact_sheet.png").is_file()


def test_an_inspection_without_the_images_draws_nothing_and_says_why(
    images: Path, settings: list[str], tmp_path: Path, toy_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store"
    main(["--shard=0/2", *arguments(images, output, settings)])
    capsys.readouterr()
    assert run(main, ["--inspect", str(output)]) == 0
    assert "No contact sheet is drawn: The feature store" in capsys.readouterr().err
    assert run(main, ["--inspect", str(toy_store)]) == 0
    assert "No contact sheet is drawn: " in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    assert run(main, ["--inspect", str(toy_store), "--images", str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"None of its images can be read in {tmp_path}\n"


# --- several processes


def test_processes_of_a_launcher_make_one_store_and_one_of_them_speaks(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--"]
    done = subprocess.run(
        [*launcher, "dept_vl.extract", *arguments(images, tmp_path / "store", settings)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "store") == whole
    assert done.stderr.count("store is finished: 60 images") == 1


def test_a_killed_process_s_work_is_taken_over_by_one_that_waits(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    output = tmp_path / "store"
    with start(images, output, settings) as first, start(images, output, settings) as second:
        wait_for_shards(first, output, 3)
        first.kill()
        for process in (first, second):
            assert process.stderr is not None
            process.stderr.read()
    assert second.returncode == 0
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
def test_two_hundred_random_kills_end_in_the_same_store(
    images: Path, settings: list[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    kill_at_random(200, images, settings, tmp_path, whole)


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
