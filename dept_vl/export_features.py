"""``python -m dept_vl.export_features``: feature store → the HDF5 file that VL-T5 reads."""

from __future__ import annotations

import sys
from pathlib import Path

from dept_vl.command_line import Parser, StopSignal, run, say
from feature_extraction.errors import UsageError

EXAMPLES = """\
  python -m dept_vl.export_features --store features/train --output train2014_obj36.h5"""


def main(arguments: list[str]) -> None:
    """Write a store's features as VL-T5 reads them."""
    parser = Parser(
        "dept_vl.export_features",
        "Write the features of a store into one HDF5 file as VL-T5 has: a group for each image, boxes in pixels.",
        EXAMPLES,
    )
    parser.add_argument("--store", type=Path, required=True, help="a finished feature store")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="an .h5 file that is not there yet")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    options = parser.parse_args(arguments)

    try:
        from feature_extraction.interchange.exporting import check_export, export_vl_t5
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise UsageError("HDF5 files need the package h5py. Install it: pip install 'dept_vl[import]'") from error
    from feature_extraction.store.reader import FeatureStore

    store = FeatureStore.open(options.store)
    size = check_export(store, options.output)
    left_out = f", {len(store.rejected)} rejected ones left out" if store.rejected else ""
    say(
        f"{len(store):,} images{left_out}, {store.visual_tokens} visual tokens of width {store.feature_width} each, "
        f"about {size / 1e6:,.1f} MB in {options.output}. VL-T5 reads it with --n_boxes {store.visual_tokens} "
        f"--feat_dim {store.feature_width}"
    )
    if options.dry_run:
        return
    with StopSignal() as stop:
        done = export_vl_t5(store, options.output, stop=lambda: bool(stop), say=say)
    if done.masked:
        say(f"{done.masked:,} images have masked visual tokens; VL-T5 knows no mask, and will see them")
    say(f"{options.output} is finished: {done.images:,} images in {done.seconds:,.1f} s")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
