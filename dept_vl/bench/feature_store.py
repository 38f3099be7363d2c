"""``python -m dept_vl.bench.feature_store``: random reads of our store against other HDF5 layouts, in one run.

All hold the same number of images. VL-T5 has a group per image with eight datasets; it reads features (always into
float32), boxes and the two sizes of an image with a call each. Its files hold float32; with float16, as large as ours,
HDF5 converts. VL-Adapter has a file per image with its features in float16, and no boxes. Our store is read as training
reads it. Rates are images per second of CPU time, which other jobs on the machine disturb less than the clock.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Float32

from dept_vl.command_line import Parser, run, say
from feature_extraction.errors import UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import plan
from feature_extraction.store.reader import FeatureStore
from feature_extraction.store.writer import StoreWriter

TOKENS, WIDTH = 36, 2048  # of VL-T5's features
EXAMPLES = "  python -m dept_vl.bench.feature_store --images 5000"


def main(arguments: list[str]) -> None:
    """Write all layouts into a temporary folder, read them at random, and print a table."""
    parser = Parser("dept_vl.bench.feature_store", "Random reads of the feature store against HDF5.", EXAMPLES)
    parser.add_argument("--images", type=int, default=2000, help="of 36 x 2048 numbers each (default: %(default)s)")
    parser.add_argument(
        "--reads", type=int, default=4000, help="of random images in each layout (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args(arguments)
    try:
        import h5py  # noqa: F401 - only to say early that it is missing
    except ImportError:
        raise UsageError("This benchmark needs h5py. Run: pip install 'dept_vl[import]'") from None

    ids = [f"COCO_train2014_{number:012d}" for number in range(options.images)]
    order = [ids[row] for row in np.random.default_rng(0).integers(0, len(ids), options.reads)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        say(f"writing {len(ids):,} images in each layout")
        write_store(Path(folder, "store"), ids)
        write_vl_t5(Path(folder, "float32.h5"), ids, np.dtype(np.float32))
        write_vl_t5(Path(folder, "float16.h5"), ids, np.dtype(np.float16))
        write_vl_adapter(Path(folder, "vl_adapter"), ids)
        say(f"reading {len(order):,} random images from each")
        readers = {
            "FeatureStore": FeatureStore.open(Path(folder, "store")).read,
            "VL-T5 HDF5 float32": vl_t5_reader(Path(folder, "float32.h5")),
            "VL-T5 HDF5 float16": vl_t5_reader(Path(folder, "float16.h5")),
            "VL-Adapter HDF5": vl_adapter_reader(Path(folder, "vl_adapter")),
        }
        rates = {name: read_rates(reader, order) for name, reader in readers.items()}
    ours = rates["FeatureStore"]
    sys.stdout.write(f"{'layout':18}  {'images/CPU-s':>12}  {'images/s':>8}  FeatureStore per CPU-s is\n")
    for name, rate in rates.items():
        sys.stdout.write(f"{name:18}  {rate.cpu:12,.0f}  {rate.clock:8,.0f}  {ours.cpu / rate.cpu:7.1f} times\n")


class Rates(NamedTuple):
    """Images per second of CPU time, and of the clock."""

    cpu: float
    clock: float


def some_images(count: int, seed: int) -> tuple[Float16[np.ndarray, "n V D"], Float32[np.ndarray, "n V 4"]]:
    """Random features and boxes."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((count, TOKENS, WIDTH), dtype=np.float32).astype(np.float16)
    return features, random.random((count, TOKENS, 4), dtype=np.float32)


def write_store(path: Path, ids: Sequence[str]) -> None:
    """Random images in our layout."""
    settings = ExtractionSettings(backbone="benchmark")
    identity = {"backbone": "benchmark", "visual_tokens": TOKENS, "feature_width": WIDTH, "dtype": "float16"}
    writer = StoreWriter(path, plan(ids, settings, identity))
    for number in writer.missing:
        rows = writer.rows(number)
        features, boxes = some_images(len(rows), number)
        writer.write(number, ids[rows.start : rows.stop], {"features": features, "boxes": boxes}, [])
    writer.finish()


def write_vl_t5(path: Path, ids: Sequence[str], dtype: np.dtype[np.floating]) -> None:
    """Random images in the layout of VL-T5's ``detectron2_proposal_maxnms.py``."""
    import h5py

    features, boxes = some_images(1, 0)
    with h5py.File(path, "w") as file:
        for image_id in ids:
            group = file.create_group(image_id)
            group["features"] = features[0].astype(dtype)
            group["boxes"] = boxes[0]
            for name in ("obj_id", "attr_id"):
                group[name] = np.zeros(TOKENS, dtype=np.int64)
            for name in ("obj_conf", "attr_conf"):
                group[name] = np.zeros(TOKENS, dtype=np.float32)
            group["img_w"], group["img_h"] = 640, 480


def vl_t5_reader(path: Path) -> Callable[[str], object]:
    """VL-T5's reading of an image, as its data sets do it."""
    import h5py

    file = h5py.File(path, "r")

    def read(image_id: str) -> object:
        features = np.zeros(shape=(TOKENS, WIDTH), dtype=np.float32)
        file[f"{image_id}/features"].read_direct(features)
        height, width = file[f"{image_id}/img_h"][()], file[f"{image_id}/img_w"][()]
        boxes = file[f"{image_id}/boxes"][()]
        boxes[:, (0, 2)] /= width
        boxes[:, (1, 3)] /= height
        return features, boxes

    return read


def write_vl_adapter(folder: Path, ids: Sequence[str]) -> None:
    """Random images in the layout of VL-Adapter's extraction for CLIP: a file for each."""
    import h5py

    folder.mkdir()
    features, _ = some_images(1, 0)
    for image_id in ids:
        with h5py.File(folder / f"{image_id}.h5", "w") as file:
            file[f"{image_id}/features"] = features[0]


def vl_adapter_reader(folder: Path) -> Callable[[str], object]:
    """VL-Adapter's reading of an image, which opens its file."""
    import h5py

    def read(image_id: str) -> object:
        with h5py.File(folder / f"{image_id}.h5", "r") as file:
            return file[f"{image_id}/features"][()]

    return read


def read_rates(read: Callable[[str], object], order: Sequence[str]) -> Rates:
    """How fast these images are read; all are read once before, so that no disk takes part."""
    for image_id in sorted(set(order)):
        read(image_id)
    cpu, clock = time.process_time(), time.perf_counter()
    for image_id in order:
        read(image_id)
    return Rates(len(order) / (time.process_time() - cpu), len(order) / (time.perf_counter() - clock))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
