"""``python -m dept_vl.extract``: images → frozen backbone → feature store."""

from __future__ import annotations

import sys
from pathlib import Path

from dept_vl.command_line import Parser, StopSignal, run, say
from dept_vl.config import layer_names, load_settings

EXAMPLES = """\
  python -m dept_vl.extract --images coco/train2014 --output features/train
  python -m dept_vl.extract --images test.txt --output features/test --features clip_rn101 features.batch_size=128
  python -m dept_vl.extract --images coco/train2014 --output features/train --features timm/convnext_tiny --dry-run"""


def main(arguments: list[str]) -> None:
    """Extract the visual tokens of a folder or list of images; the same command goes on after a stop."""
    parser = Parser(
        "dept_vl.extract",
        "Turn images into visual tokens, once: a frozen backbone reads them, a feature store keeps them.",
        EXAMPLES,
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder, or a .txt list with one path a line")
    parser.add_argument(
        "--output", type=Path, required=True, help="the feature store's folder; an unfinished one goes on"
    )
    parser.add_argument(
        "--features",
        metavar="NAME",
        default="efficientnet_lite0",
        help=f"{', '.join(layer_names('features'))}, timm/MODEL or hf/MODEL (default: %(default)s)",
    )
    parser.add_argument(
        "--max-rejected-fraction",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="stop when more of the images than this cannot be used, 0 to 1; up to ten never stop, unless it is 0",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings such as features.image_size=224")
    options = parser.parse_intermixed_args(arguments)
    settings = load_settings({"features": options.features}, options.settings).features

    from feature_extraction.extract import plan_extraction, run_plan

    planned = plan_extraction(options.images, settings)
    manifest = planned.manifest
    say(
        f"{manifest.images:,} images, {manifest.visual_tokens} visual tokens of width {manifest.feature_width} each, "
        f"{manifest.shards} shards, about {planned.bytes / 1e6:,.1f} MB in {options.output}"
    )
    if options.dry_run:
        return
    with StopSignal() as stop:
        done = run_plan(
            planned,
            options.output,
            max_rejected_fraction=options.max_rejected_fraction,
            stop=lambda: bool(stop),
            say=say,
        )
    if done.extracted == 0:
        say(f"{options.output} is finished already: {done.images:,} images, {done.rejected} rejected")
    else:
        say(
            f"{options.output} is finished: {done.images:,} images, {done.rejected} rejected; "
            f"{done.extracted:,} extracted in {done.seconds:,.1f} s ({done.extracted / done.seconds:,.0f} images/s)"
        )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
