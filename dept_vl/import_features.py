"""``python -m dept_vl.import_features``: features that another tool made → feature store."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dept_vl.command_line import Parser, StopSignal, run, say

if TYPE_CHECKING:
    from feature_extraction.store.layout import Manifest

EXAMPLES = """\
  python -m dept_vl.import_features --source train2014_obj36.h5 val2014_obj36.h5 --name butd_vg --output features/coco
  python -m dept_vl.import_features --source vg_gqa_obj36.tsv --name butd_vg --output features/gqa --dtype float16
  python -m dept_vl.import_features --source data_clip_RN101_att --name clip_rn101 --output features/nlvr --dry-run"""


def main(arguments: list[str]) -> None:
    """Bring the features of another tool into a store; the same command goes on after a stop."""
    options = _parser().parse_args(arguments)

    from feature_extraction.interchange.importing import plan_import, run_import
    from feature_extraction.interchange.shape import ImportSettings

    settings = ImportSettings(**{name: getattr(options, name) for name in ImportSettings._fields})
    with StopSignal() as stop:
        planned = plan_import(options.source, settings, stop=lambda: bool(stop), say=say)
        manifest = planned.manifest
        say(
            f"{manifest.images:,} images, {manifest.visual_tokens} visual tokens of width {manifest.feature_width} "
            f"each, {manifest.identity['dtype']}, boxes: {planned.boxes}, {manifest.shards} shards, about "
            f"{manifest.estimated_bytes / 1e6:,.1f} MB in {options.output}"
        )
        for entry in list(planned.rejected.values())[:5]:
            say(f"  cannot be used: {entry.reason}")
        if options.dry_run:
            return
        if options.output.exists():
            _open_again(options, manifest)
        done = run_import(planned, options.output, stop=lambda: bool(stop), say=say)
    if done.imported == 0:
        say(f"{options.output} is finished already: {done.images:,} images, {done.rejected} rejected")
    else:
        megabytes = done.imported * manifest.bytes_per_image / 1e6
        say(
            f"{options.output} is finished: {done.images:,} images, {done.rejected} rejected; {done.imported:,} "
            f"imported in {done.seconds:,.1f} s ({done.imported / done.seconds:,.0f} images/s, "
            f"{megabytes / done.seconds:,.0f} MB/s)"
        )


def _open_again(options: argparse.Namespace, manifest: Manifest) -> None:
    """Make shards of an existing store count as missing, as far as the user wants that."""
    from feature_extraction.store.care import check, clear_damaged, forget_rejected
    from feature_extraction.store.writer import refuse_another_store

    if options.repair:
        refuse_another_store(options.output, manifest)  # before anything is removed
        report = check(options.output)
        say(f"{options.output}: {report.summary}")
        if report.faults:
            clear_damaged(options.output, [fault.file for fault in report.faults])
    if options.retry_rejected:
        again = forget_rejected(options.output, manifest)
        say(f"{len(again)} shards with rejected images are done again")


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.import_features",
        "Bring features that another tool made into a feature store, bit-equal and checked.",
        EXAMPLES,
    )
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="files or folders, of which one store is made: VL-T5's .h5, VL-Adapter's folder of .h5, LXMERT's or "
        "bottom-up attention's .tsv, a folder of .npz or .npy",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="STORE", help="an unfinished one goes on")
    parser.add_argument(
        "--name",
        required=True,
        help="what made the features, such as butd_vg; stores of one name are taken to be of one network",
    )
    parser.add_argument(
        "--format", help="vl_t5, vl_adapter, lxmert_tsv or arrays (default: as the names of the files tell)"
    )
    parser.add_argument(
        "--boxes",
        help="for features without boxes: cells of a square grid, or zeros as VL-Adapter feeds them (default for "
        "VL-Adapter: cells)",
    )
    parser.add_argument(
        "--visual-tokens",
        type=int,
        metavar="V",
        help="per image; fewer are filled up and masked (default: as many as the image with the most has). Give it "
        "where several stores must fit together",
    )
    parser.add_argument("--dtype", help="float16 halves float32 features, and rounds them (default: as they are)")
    parser.add_argument(
        "--shard-size", type=int, default=512, metavar="N", help="images in a file of the store (default: %(default)s)"
    )
    parser.add_argument(
        "--max-rejected-fraction",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of all images, 0 to 1: stop when more cannot be used; up to ten never stop, unless it is 0, the default",
    )
    parser.add_argument("--retry-rejected", action="store_true", help="do again the shards with rejected images")
    parser.add_argument("--repair", action="store_true", help="read all of the store, and write damaged shards anew")
    parser.add_argument("--dry-run", action="store_true", help="list the images and say what would be done")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
