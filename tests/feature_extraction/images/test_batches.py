from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feature_extraction.images import batches
from feature_extraction.images.batches import AHEAD, Batch, DecodedBatch, decode_batch, decoded_batches, shard_batches
from feature_extraction.images.decoding import ImageFile
from feature_extraction.images.inputs import Preparation
from feature_extraction.images.preprocessing import WHOLE, Preprocessing, View

HALF = (0.5, 0.5, 0.5)
PREPARATION = Preparation(Preprocessing(8, "bicubic", HALF, HALF))
WITH_DETECTOR = Preparation(PREPARATION.backbone, Preprocessing(12, "bilinear", HALF, HALF, "pad"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    """Twenty-one pictures, of which 5 and 17 are damaged, and so are 8 to 11."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(21):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
        if number in (5, 17, *range(8, 12)):
            (folder / f"{number:02d}.png").write_bytes(b"no picture")
    return [ImageFile(path.stem, path) for path in sorted(folder.iterdir())]


def plan(images: list[ImageFile]) -> list[Batch]:
    """Shards of 8 images in batches of 4: the third batch is all damaged, the last one smaller."""
    return [batch for number in range(3) for batch in shard_batches(number, images[8 * number : 8 * number + 8], 4)]


def same(one: DecodedBatch, other: DecodedBatch) -> bool:
    if one._replace(inputs=None) != other._replace(inputs=None) or (one.inputs is None) != (other.inputs is None):
        return False
    if one.inputs is None or other.inputs is None:
        return True
    pairs = [(array, other.inputs.arrays()[name]) for name, array in one.inputs.arrays().items()]
    return all((a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in pairs)


# --- batches of a shard


def test_the_batches_of_a_shard_are_fixed() -> None:
    files = [ImageFile(str(number), Path(f"{number}.png")) for number in range(7)]
    found = shard_batches(4, files, 3)
    assert [[image.image_id for image in batch.images] for batch in found] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [batch.shard for batch in found] == [4, 4, 4]
    assert [batch.last_of_shard for batch in found] == [False, False, True]
    assert shard_batches(0, [], 3) == []
    assert [batch.last_of_shard for batch in shard_batches(0, files[:6], 3)] == [False, True]


def test_damaged_images_are_named_and_the_others_keep_their_order(images: list[ImageFile]) -> None:
    decoded = decode_batch(Batch(3, True, images[4:8]), PREPARATION)
    assert (decoded.shard, decoded.last_of_shard) == (3, True)
    assert [image.image_id for image in decoded.images] == ["04", "06", "07"]
    assert decoded.inputs is not None
    assert decoded.inputs.pixels.shape == (3, 8, 8, 3)
    (entry,) = decoded.rejected
    assert (entry.image_id, entry.file) == ("05", str(images[5].path))
    assert entry.reason.startswith(f"{images[5].path} (10 bytes): none of the formats")
    assert decode_batch(Batch(0, False, images[8:12]), PREPARATION).inputs is None


# --- workers


@pytest.mark.parametrize("preparation", [PREPARATION, WITH_DETECTOR], ids=["backbone", "with detector"])
@pytest.mark.parametrize("workers", [0, 1, 2, 9])
def test_workers_change_nothing(images: list[ImageFile], workers: int, preparation: Preparation) -> None:
    found = list(decoded_batches(plan(images), preparation, workers=workers))
    expected = [decode_batch(batch, preparation) for batch in plan(images)]
    assert len(found) == 6
    assert all(map(same, found, expected))
    assert found[2].inputs is None
    assert found[0].inputs is not None
    assert found[0].inputs.pixels.flags.writeable  # torch takes no others
    assert active_children() == []


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_be_started_in_any_way(
    images: list[ImageFile], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "Process", get_context(method).Process)  # type: ignore[attr-defined]
    found = list(decoded_batches(plan(images), PREPARATION, workers=2))
    assert all(map(same, found, [decode_batch(batch, PREPARATION) for batch in plan(images)]))


def test_without_memory_files_an_unlinked_file_does(images: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    found = list(decoded_batches(plan(images), PREPARATION, workers=2))
    assert all(map(same, found, [decode_batch(batch, PREPARATION) for batch in plan(images)]))


class Growing:
    """A transform whose inputs grow with the image, to more than any pipe holds."""

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, View]:
        """As many bytes as the red of the first pixel says."""
        return np.full((int(image[0, 0, 0]) << 14, 1), image[0, 0, 0]), WHOLE

    def identity(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}


def test_batches_may_grow_and_shrink(tmp_path: Path) -> None:
    reds = [1, 200, 3, 255, 2, 100, 1]
    for number, red in enumerate(reds):
        Image.new("RGB", (1, 1), (red, 0, 0)).save(tmp_path / f"{number}.png")
    single = [Batch(number, True, [ImageFile("x", tmp_path / f"{number}.png")]) for number in range(len(reds))]
    found = [batch.inputs for batch in decoded_batches(single, Preparation(Growing()), workers=1)]
    assert [(one.pixels.shape[1], one.pixels.max()) for one in found if one] == [(red << 14, red) for red in reds]


def test_what_was_fetched_stays_as_it_is(images: list[ImageFile]) -> None:
    found = []
    for batch in decoded_batches(plan(images), PREPARATION, workers=1):
        found.append((batch, pickle.dumps(batch.inputs)))
    assert all(pickle.dumps(batch.inputs) == then for batch, then in found)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_taken_only_as_far_ahead_as_the_workers_need(images: list[ImageFile], workers: int) -> None:
    taken = 0

    def endless() -> Iterator[Batch]:
        nonlocal taken
        while True:
            taken += 1
            yield Batch(taken, False, images[:1])

    with closing(decoded_batches(endless(), PREPARATION, workers=workers)) as decoded:
        for number in range(1, 30):
            assert next(decoded).shard == number
            assert taken == number + AHEAD * workers
    assert active_children() == []


def test_no_batches_need_no_workers() -> None:
    assert list(decoded_batches([], PREPARATION, workers=2)) == []


def test_more_names_than_a_pipe_holds_stop_neither_side(images: list[ImageFile]) -> None:
    absent = [ImageFile(f"{number}" * 50, Path("/absent", "x" * 100, f"{number}.jpg")) for number in range(4000)]
    found = list(decoded_batches([Batch(0, False, absent)] * 6, PREPARATION, workers=2))
    assert [len(batch.rejected) for batch in found] == [4000] * 6


def peak_memory(process: int) -> int:
    """The most bytes that a process has held so far."""
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_worker_s_memory_does_not_grow_with_the_number_of_images(images: list[ImageFile]) -> None:
    good = [image for image in images if image.image_id != "05"][:4]
    endless = (Batch(number, False, good) for number in range(10**9))
    with closing(decoded_batches(endless, PREPARATION, workers=1)) as decoded:
        next(decoded)
        (worker,) = active_children()
        peaks = [peak_memory(worker.pid or 0) for _ in islice(decoded, 600)]
    assert peaks[-1] - peaks[100] <= 1e6


# --- ends


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_ends_the_workers_and_gives_all_memory_back(images: list[ImageFile], workers: int) -> None:
    before = sorted(os.listdir("/dev/fd"))
    decoded = decoded_batches(plan(images), PREPARATION, workers=workers)
    next(decoded)
    assert len(active_children()) == workers
    decoded.close()
    assert active_children() == []
    assert sorted(os.listdir("/dev/fd")) == before


class Failing(Preparation):
    """Decodes until image 06, and then does what ``fate`` says."""

    fate: Callable[[], object]

    def of_file(self, image: ImageFile | Path) -> Any:
        """As it ever was, until then."""
        if isinstance(image, ImageFile) and image.image_id == "06":
            self.fate()
        return super().of_file(image)


class Killed(Failing):
    """The system ends the worker."""

    @staticmethod
    def fate() -> object:
        """As systems do."""
        os.kill(os.getpid(), signal.SIGKILL)
        return time.sleep(60)


class Broken(Failing):
    """A fault of ours."""

    @staticmethod
    def fate() -> object:
        """No fault of the image."""
        raise RuntimeError("a fault of ours")


class Full(Failing):
    """Memory runs out within the worker."""

    @staticmethod
    def fate() -> object:
        """No fault of the image."""
        raise MemoryError


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            Killed,
            MemoryError,
            r"A decoding process was killed by SIGKILL, as systems do when memory runs out\. The finished shards stay: "
            r"run the same command again with a lower features\.workers or features\.max_pixels",
        ),
        (Full, MemoryError, r"A decoding process ran out of memory\. The finished .* lower features\.workers or feat"),
        (Broken, RuntimeError, r"A decoding process failed with exit code 1; its traceback stands above"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_worker_is_an_error_that_says_what_to_do(
    images: list[ImageFile],
    kind: type[Failing],
    error: type[Exception],
    message: str,
    workers: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    decoded = decoded_batches(plan(images), kind(PREPARATION.backbone), workers=workers)
    assert [image.image_id for image in next(decoded).images] == ["00", "01", "02", "03"]
    with pytest.raises(error, match=message):
        list(decoded)
    assert active_children() == []
    assert ("a fault of ours" in capfd.readouterr().err) == (kind is Broken)


def test_a_worker_that_is_lost_between_batches_is_seen_when_it_is_asked(images: list[ImageFile]) -> None:
    endless = (Batch(number, False, images[:1]) for number in range(10**9))
    decoded = decoded_batches(endless, PREPARATION, workers=1)
    next(decoded)
    (worker,) = active_children()
    worker.kill()
    worker.join()
    with pytest.raises(MemoryError, match="killed by SIGKILL"):
        list(decoded)


def test_a_fault_without_workers_is_raised_as_it_is(images: list[ImageFile]) -> None:
    with pytest.raises(RuntimeError, match=r"^a fault of ours$"):
        list(decoded_batches(plan(images), Broken(PREPARATION.backbone), workers=0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_to_all_processes_leave_the_workers_at_work(images: list[ImageFile], number: int) -> None:
    with closing(decoded_batches(plan(images), PREPARATION, workers=2)) as decoded:
        next(decoded)
        for worker in active_children():
            os.kill(worker.pid or 0, number)
        assert len(list(decoded)) == 5


RUN = """
import sys
from multiprocessing import active_children
from pathlib import Path
from feature_extraction.images.batches import Batch, decoded_batches
from feature_extraction.images.decoding import ImageFile
from feature_extraction.images.inputs import Preparation
from feature_extraction.images.preprocessing import Preprocessing
if __name__ == "__main__":
    preparation = Preparation(Preprocessing(64, "bicubic", (0.5,) * 3, (0.5,) * 3))
    image = ImageFile("a", Path(sys.argv[1]))
    decoded = decoded_batches((Batch(0, False, [image]) for _ in range(10**9)), preparation, workers=3)
    next(decoded)
    print(*(worker.pid for worker in active_children()), flush=True)
    if sys.argv[2] == "go on":
        for _ in decoded:
            pass
"""


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("killed", ["parent", "worker"])
def test_nothing_is_left_after_a_kill(images: list[ImageFile], tmp_path: Path, killed: str) -> None:
    shared_memory = Path("/dev/shm")
    before = set(shared_memory.iterdir()) if shared_memory.is_dir() else set()
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, tmp_path / "run.py", images[0].path, "go on"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 3
        os.kill(process.pid if killed == "parent" else workers[1], signal.SIGKILL)
        _, messages = process.communicate()
    wait_until(lambda: not any(map(is_running, workers)))
    assert "leaked" not in messages
    assert ("MemoryError" in messages) == (killed == "worker")
    assert (set(shared_memory.iterdir()) if shared_memory.is_dir() else set()) <= before


def test_a_program_that_forgets_to_close_still_ends(images: list[ImageFile], tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, tmp_path / "run.py", images[0].path, "stop"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: not any(is_running(int(number)) for number in done.stdout.split()))
