"""Where the time of an extraction goes, stage by stage: ``python -m dept_vl.bench.extraction --help``.

Every stage runs alone on the same images, then all of them together as ``dept_vl.extract`` runs them. No extraction can
be faster than its workers decode; the share of that limit says how much of it the whole reaches. Files are read once
before they are counted on, so that no disk takes part unless the images are more than memory holds.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from dept_vl.command_line import Parser, run, say
from feature_extraction.errors import InputDataError

if TYPE_CHECKING:
    from feature_extraction.backbones import Backbone
    from feature_extraction.extract import Plan
    from feature_extraction.images.decoding import ImageFile
    from feature_extraction.images.inputs import Inputs
    from feature_extraction.store.layout import StoredImages

EXAMPLES = """\
  python -m dept_vl.bench.extraction
  python -m dept_vl.bench.extraction --images coco/train2014 --features clip_rn101 features.workers=16
  python -m dept_vl.bench.extraction --features timm/vit_base_patch16_clip_224.openai features.precision=bf16"""

PHOTO = (480, 640)  # height and width in pixels, of most of COCO's
READY_BATCHES = 4  # of prepared pixels, which the backbone sees again and again


class Stage(NamedTuple):
    """A row of the table."""

    name: str
    images_per_second: float


class Ready(NamedTuple):
    """A batch of images as the backbone wants them."""

    ids: list[str]
    inputs: Inputs


def main(arguments: list[str]) -> None:
    """Time the stages and the whole, and print a table."""
    parser = Parser(
        "dept_vl.bench.extraction",
        "Where the time of an extraction goes: decoding, resizing, copying, the backbone, writing, and the whole.",
        EXAMPLES,
    )
    parser.add_argument("--images", metavar="SOURCE", help="as for dept_vl.extract (default: made photos of 640 x 480)")
    parser.add_argument("--count", type=int, default=1024, help="of images from all over the source: %(default)s")
    parser.add_argument("--features", metavar="NAME", default="efficientnet_lite0", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings such as features.image_size=224")
    options = parser.parse_intermixed_args(arguments)

    from dept_vl.config import load_settings

    settings = load_settings({"features": options.features}, options.settings).features

    from feature_extraction.extract import plan_extraction

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source: str | Path = options.images or Path(folder, "photos")
        if not options.images:
            say(f"making {options.count:,} photos")
            make_photos(Path(folder, "photos"), options.count)
        planned = some_of(plan_extraction(source, settings), options.count)
        say(f"timing {len(planned.images):,} images")
        stages, share = time_stages(planned, Path(folder, "stores"))
    sys.stdout.write(f"{heading(planned)}\n{'stage':34}  {'images/s':>9}  {'ms/image':>8}\n")
    for name, rate in stages:
        sys.stdout.write(f"{name:34}  {rate:9,.1f}  {1000 / rate:8.2f}\n")
    sys.stdout.write(f"{'share of the decode limit reached':34}  {100 * share:8.0f}%\n")
    if settings.workers:
        sys.stdout.write(
            f"{'peak memory of a worker':34}  {peak_of_children() / 1e6:6,.0f} MB, what it shares included\n"
        )


def make_photos(folder: Path, count: int) -> None:
    """JPEGs as large as COCO's, about 140 kB each, with as much detail as a photo."""
    folder.mkdir()
    random = np.random.default_rng(0)
    height, width = PHOTO
    noise = random.integers(-12, 13, (height, width, 3), dtype=np.int16)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        shifted = np.roll(noise, (number, 7 * number), (0, 1))
        Image.fromarray((smooth + shifted).clip(0, 255).astype(np.uint8)).save(folder / f"{number:06d}.jpg", quality=93)


def some_of(planned: Plan, count: int) -> Plan:
    """The plan for so many of its images."""
    from feature_extraction.samples import spread
    from feature_extraction.store.layout import plan

    images, backbone = spread(planned.images, count), planned.backbone
    ids = [image.image_id for image in images]
    manifest = plan(ids, backbone.settings, backbone.identity(), more=backbone.more_fields)
    return planned._replace(images=images, manifest=manifest)


def time_stages(planned: Plan, folder: Path) -> tuple[list[Stage], float]:
    """How fast each stage is and the whole, and the whole's share of the limit that decoding sets."""
    images, backbone = planned.images, planned.backbone
    alone, ready = _decode_and_resize(images, backbone)
    limit = _workers(images, backbone)
    found, encoding = _encode(ready, backbone, len(images))
    copying = _copy(ready, backbone, len(images))
    whole = _whole(planned, folder / "whole")
    stages = [*alone, limit, *copying, encoding, _write(found, planned, folder / "alone"), whole]
    return stages, whole.images_per_second / limit.images_per_second


def _decode_and_resize(images: Sequence[ImageFile], backbone: Backbone) -> tuple[list[Stage], list[Ready]]:
    """Both stages in this process, and the first batches of what they make."""
    from feature_extraction.images.decoding import ImageRejected, decode_image, read_image
    from feature_extraction.images.inputs import Inputs

    size = backbone.settings.batch_size
    decoding = resizing = 0.0
    ids: list[str] = []
    inputs: list[Inputs] = []
    for image in images:
        try:
            read_image(image)  # now the system has it in memory
            started = time.perf_counter()
            pixels = decode_image(image, backbone.preparation.rules)
        except (ImageRejected, OSError):
            continue
        decoded = time.perf_counter()
        one = backbone.preparation.of_image(pixels)
        resizing += time.perf_counter() - decoded
        decoding += decoded - started
        if len(ids) < READY_BATCHES * size:
            ids.append(image.image_id)
            inputs.append(one)
    if not ids:
        raise InputDataError("None of the images can be decoded. See why: python -m dept_vl.extract --dry-run")
    ready = [Ready(ids[at : at + size], Inputs.joined(inputs[at : at + size])) for at in range(0, len(ids), size)]
    stages = [Stage("decode, 1 process", len(images) / decoding), Stage("resize, 1 process", len(images) / resizing)]
    return stages, ready


def _workers(images: Sequence[ImageFile], backbone: Backbone) -> Stage:
    from feature_extraction.images.batches import decoded_batches, shard_batches

    workers = backbone.settings.workers
    batches = shard_batches(0, images, backbone.settings.batch_size)
    seconds = _seconds(lambda: sum(1 for _ in decoded_batches(batches, backbone.preparation, workers=workers)))
    return Stage(f"decode and resize, {workers} workers", len(images) / seconds)


def _copy(ready: Sequence[Ready], backbone: Backbone, count: int) -> list[Stage]:
    """The way of the pixels to a GPU, where there is one."""
    import torch

    if backbone.device.type != "cuda":
        return []

    def copy(batch: Ready) -> None:
        for pixels in (batch.inputs.pixels, batch.inputs.region_pixels):
            if pixels is not None:
                torch.from_numpy(pixels).to(backbone.device)
        torch.cuda.synchronize(backbone.device)

    return [Stage("copy to the GPU", _rate(copy, ready, count))]


def _encode(ready: Sequence[Ready], backbone: Backbone, count: int) -> tuple[list[StoredImages], Stage]:
    """What the backbone makes of the ready pixels."""
    found = [backbone.encode_inputs(*batch) for batch in ready]  # slower than all that follow
    return found, Stage(
        "backbone, from ready pixels", _rate(lambda batch: backbone.encode_inputs(*batch), ready, count)
    )


def _write(found: Sequence[StoredImages], planned: Plan, folder: Path) -> Stage:
    """What was found, over and over, until the store is full."""
    from feature_extraction.store.writer import StoreWriter

    ids = [image.image_id for image in planned.images]
    many = {name: np.concatenate([batch[name] for batch in found]) for name in planned.manifest.fields}
    with StoreWriter(folder, planned.manifest) as writer:

        def write() -> None:
            for number in writer.missing:
                rows = np.array(writer.rows(number))
                part = {name: array[rows % len(array)] for name, array in many.items()}
                writer.write(number, [ids[row] for row in rows], part, [])
            writer.finish()

        return Stage("write", len(ids) / _seconds(write))


def _whole(planned: Plan, folder: Path) -> Stage:
    from feature_extraction.extract import run_plan
    from feature_extraction.store.writer import StoreWriter

    with StoreWriter(folder, planned.manifest):  # a store that is there needs no self-test
        pass
    done = run_plan(planned, folder, max_rejected_fraction=1.0, stop=lambda: False, say=lambda line: None)
    return Stage("whole", len(planned.images) / done.seconds)


def _rate(work: Callable[[Ready], object], ready: Sequence[Ready], count: int) -> float:
    """Images per second of work on batches, for about as many images as the collection has."""
    done, started = 0, time.perf_counter()
    for batch in cycle(ready):
        work(batch)
        done += len(batch.ids)
        if done >= count:
            break
    return done / (time.perf_counter() - started)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_of_children() -> int:
    """The bytes that the largest of the ended child processes held, with what it shared with this one."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def heading(planned: Plan) -> str:
    """What was timed, and on what."""
    import torch

    settings, device = planned.backbone.settings, planned.backbone.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return (
        f"{len(planned.images):,} images, {settings.backbone} at {settings.image_size} pixels, {where}, "
        f"{settings.precision}, batch {settings.batch_size}"
    )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
