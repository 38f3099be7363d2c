"""``python -m dept_vl.extract``: images → frozen backbone → feature store; and the care of stores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from dept_vl.command_line import Parser, StopSignal, command_text, run, say
from dept_vl.config import layer_names, load_settings
from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import read_manifest

if TYPE_CHECKING:
    from feature_extraction.extract import Extraction, Part, Plan

EXAMPLES = """\
  python -m dept_vl.extract --images coco/train2014 --output features/train
  python -m dept_vl.extract --images coco/train2014 --output features/train --features clip_rn101 --dry-run --preview 6
  python -m dept_vl.extract --images shards/ --output features/web --features hf/facebook/dinov2-base features.workers=8
  torchrun --nproc_per_node 8 -m -- dept_vl.extract --images coco/images --output features/coco --features clip_vit_l14
  python -m dept_vl.extract --inspect features/coco"""


def main(arguments: list[str]) -> None:
    """Extract the visual tokens of a collection, or look after a store; the same command goes on after a stop."""
    options = _parser().parse_intermixed_args(arguments)
    _refuse_odd_numbers(options)
    if options.verify:
        _verify(options.verify)
    elif options.inspect:
        _inspect(options)
    elif options.repair:
        _repair(options)
    elif not options.images or not options.output:
        raise UsageError(
            "--images and --output are both needed. As in: python -m dept_vl.extract --images DIR --output STORE"
        )
    else:
        _extract(options)


def _refuse_odd_numbers(options: argparse.Namespace) -> None:
    if not 0 <= options.max_rejected_fraction <= 1:
        raise UsageError(
            f"--max-rejected-fraction is {options.max_rejected_fraction}; it is a share of the images, from 0 to 1"
        )
    if options.preview < 0:
        raise UsageError(f"--preview is {options.preview}; it is a number of images, 0 or more")


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.extract",
        "Turn images into visual tokens, once: a frozen backbone reads them, a feature store keeps them.",
        EXAMPLES,
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--images",
        metavar="SOURCE",
        help="a folder, a .txt list with one path a line, .tar shards, parquet files, or datasets:NAME:SPLIT",
    )
    images.add_argument("--image-column", metavar="NAME", help="of a table; default: the one that holds images")
    images.add_argument("--id-column", metavar="NAME", help="of a table; default: image_id, id or the files' names")
    images.add_argument(
        "--max-rejected-fraction",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="stop when more of the images than this cannot be used, 0 to 1; up to ten never stop, unless it is 0",
    )
    images.add_argument(
        "--strict",
        action="store_const",
        const=0.0,
        dest="max_rejected_fraction",
        help="stop at the first image that cannot be used",
    )
    images.add_argument("--retry-rejected", action="store_true", help="do again the shards with rejected images")
    store = parser.add_argument_group("store")
    store.add_argument("--output", type=Path, metavar="STORE", help="the store's folder; an unfinished one goes on")
    store.add_argument(
        "--features",
        metavar="NAME",
        default="efficientnet_lite0",
        help=f"{', '.join(layer_names('features'))}, timm/MODEL, hf/MODEL or MODULE:FUNCTION (default: %(default)s)",
    )
    store.add_argument(
        "--shard", metavar="i/n", help="write only the i-th of n parts, from 0: for independent jobs on one store"
    )
    store.add_argument("--dry-run", action="store_true", help="try some images, say what would be done, write no store")
    store.add_argument(
        "--preview", type=int, default=0, metavar="N", help="first draw the boxes of N images, into STORE.preview/"
    )
    care = parser.add_argument_group("care of a store").add_mutually_exclusive_group()
    care.add_argument("--inspect", type=Path, metavar="STORE", help="say what is in a store, and draw a contact sheet")
    care.add_argument("--verify", type=Path, metavar="STORE", help="read all of a store and name every fault")
    care.add_argument("--repair", type=Path, metavar="STORE", help="write damaged or missing shards anew")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings such as features.image_size=224")
    return parser


def _extract(options: argparse.Namespace) -> None:
    settings = load_settings({"features": options.features}, options.settings).features

    from feature_extraction.extract import Part, check_space, plan_extraction

    part = Part.named(options.shard) if options.shard else Part.of_launcher()
    planned = plan_extraction(_source(options.images), settings, **_columns(options))
    if options.preview and part.index == 0:
        _preview(planned, options.output, options.preview)
    if options.dry_run:
        _say_plan(planned, options.output)
        check_space(planned, options.output)
        _say_trial(planned)
    else:
        _write(planned, options.output, part, options)


def _write(planned: Plan, store: Path, part: Part, options: argparse.Namespace) -> None:
    """Write the store, and say what came of it; of processes launched together only the first speaks."""
    from feature_extraction.extract import run_plan
    from feature_extraction.store.care import forget_rejected

    speaks = part.strict or part.index == 0
    if speaks:
        _say_plan(planned, store)
    if options.retry_rejected and part.index == 0 and store.exists():
        again = forget_rejected(store, planned.manifest)
        say(f"{len(again)} shards with rejected images are done again")
    with StopSignal() as stop:
        done = run_plan(
            planned,
            store,
            part=part,
            max_rejected_fraction=options.max_rejected_fraction,
            stop=lambda: bool(stop),
            say=say if speaks else lambda line: None,
        )
    if speaks:
        _say_end(done, store)


def _source(text: str) -> Path | str:
    return text if text.startswith("datasets:") else Path(text)


def _columns(options: argparse.Namespace) -> dict[str, str | None]:
    return {"image_column": options.image_column, "id_column": options.id_column}


def _say_plan(planned: Plan, output: Path) -> None:
    manifest = planned.manifest
    say(
        f"{manifest.images:,} images, {manifest.visual_tokens} visual tokens of width {manifest.feature_width} each, "
        f"{manifest.shards} shards, about {manifest.estimated_bytes / 1e6:,.1f} MB in {output}"
    )


def _say_end(done: Extraction, output: Path) -> None:
    if done.unfinished:
        say(f"This job's part of {output} is done; {done.unfinished} shards are left to other jobs")
    elif done.extracted == 0:
        say(f"{output} is finished already: {done.images:,} images, {done.rejected} rejected")
    else:
        say(
            f"{output} is finished: {done.images:,} images, {done.rejected} rejected; "
            f"{done.extracted:,} extracted in {done.seconds:,.1f} s ({done.extracted / done.seconds:,.0f} images/s)"
        )


def _say_trial(planned: Plan) -> None:
    from feature_extraction.samples import try_out

    trial = try_out(planned)
    workers = planned.backbone.settings.workers
    seconds = trial.seconds(planned.manifest.images, workers)
    say(
        f"Tried {trial.images} images from all over: {len(trial.rejected)} rejected; one process decodes "
        f"{trial.decoding_rate:,.0f} images/s, the backbone takes {trial.encoding_rate:,.0f}. All would take about "
        f"{timedelta(seconds=round(seconds))} with features.workers={workers}"
    )
    for entry in trial.rejected[:5]:
        say(f"  rejected: {entry.reason}")


def _preview(planned: Plan, output: Path, count: int) -> None:
    from feature_extraction.samples import preview

    folder = _beside(output, ".preview")
    for path in preview(planned, folder, count):
        say(f"Drew {path}")


def _beside(store: Path, ending: str) -> Path:
    """A path beside a store: nothing of ours but the store itself stands in its folder."""
    named = store if store.name else store.resolve()  # of "." only the whole path has a name
    return named.with_name(named.name + ending)


def _verify(store: Path) -> None:
    from feature_extraction.store.care import check

    with _reading() as progress:
        report = check(store, progress=progress)
    say(f"{store}: {report.summary}")
    report.refuse_faults()


def _inspect(options: argparse.Namespace) -> None:
    from feature_extraction.store.care import describe

    for line in describe(options.inspect):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()

    from feature_extraction.images.sources import list_images
    from feature_extraction.samples import draw_contact_sheet
    from feature_extraction.store.reader import FeatureStore

    path = _beside(options.inspect, ".contact_sheet.png")
    try:
        source = _source_of(options.inspect, options)
        drawn = draw_contact_sheet(
            FeatureStore.open(options.inspect), list_images(source.images, **source.columns), path
        )
    except (InputDataError, OSError) as error:
        say(f"No contact sheet is drawn: {error}")
        return
    say(f"{drawn} images of it are drawn in {path}" if drawn else f"None of its images can be read in {source.images}")


def _repair(options: argparse.Namespace) -> None:
    from feature_extraction.store.care import check, clear_damaged

    store = options.repair
    with _reading() as progress:
        report = check(store, progress=progress)
    say(f"{store}: {report.summary}")
    for fault in report.faults:
        say(f"  {fault.file}: expected {fault.expected}, got {fault.got}")
    if not report.faults and not options.retry_rejected and report.finished == report.shards:
        return

    from feature_extraction.extract import Part, plan_extraction
    from feature_extraction.store.writer import refuse_another_store

    source = _source_of(store, options)
    planned = plan_extraction(source.images, _settings_of(store, options.settings), **source.columns)
    refuse_another_store(store, planned.manifest)  # before anything is removed
    if report.faults:
        clear_damaged(store, [fault.file for fault in report.faults])
    _write(planned, store, Part(), options)


class _Source(NamedTuple):
    """Where a store's images are."""

    images: Path | str
    columns: dict[str, str | None]


def _source_of(store: Path, options: argparse.Namespace) -> _Source:
    """The images that --images names, or else those that the store was extracted from.

    Raises:
        InputDataError: the store was imported from another tool's features; names the command that made it.
    """
    if options.images:
        return _Source(_source(options.images), _columns(options))
    told = read_manifest(store).source
    named = dict(zip(told[::2], told[1::2], strict=False))
    if "--images" not in named:
        again = command_text("dept_vl.import_features", [*told, "--output", str(store), "--repair"])
        raise InputDataError(
            f"{store} was not extracted from images but imported from the features of another tool. To repair it, "
            f"run: {again}"
        )
    columns = {"image_column": named.get("--image-column"), "id_column": named.get("--id-column")}
    return _Source(_source(named["--images"]), columns)


def _settings_of(store: Path, overrides: list[str]) -> ExtractionSettings:
    """The settings that a store was extracted with, and others of the command line over them."""
    names = [override.partition("=")[0].removeprefix("features.") for override in overrides]
    given = load_settings({}, overrides).features
    saved = ExtractionSettings(**read_manifest(store).settings)
    return replace(saved, **{name: getattr(given, name) for name in names})


@contextmanager
def _reading() -> Iterator[Callable[[int, int], None]]:
    """A bar of the bytes read, on a terminal."""
    with tqdm(unit="B", unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def read(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield read


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
