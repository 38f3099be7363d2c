"""Few-shot transfer from several sources, over several seeds: ``python -m dept_vl.transfer --help``."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from dept_vl.command_line import Parser, StopSignal, command_text, paths_by_task, run, say
from dept_vl.config import layer_names, load_settings
from dept_vl.settings import INIT_PARTS, Settings
from dept_vl.transfer_results import SCRATCH, Start, source_names, write_results
from feature_extraction.errors import UsageError

MODES = INIT_PARTS
# What the command sets in each run; its own options give the values.
SET_HERE = ("data.shots", "data.shots_seed", "training.seed", "method.init_from", "method.init_parts")
EXAMPLES = """\
  python -m dept_vl.transfer --task cb --data superglue/CB --sources runs/mnli runs/qqp runs/sst2 --shots 4,16,32 \\
      --seeds 3 --scratch --output runs/few_shot_cb training.steps=500 training.epochs=null training.evaluate_every=50
  python -m dept_vl.transfer --task nlvr2 --data nlvr2 --features nlvr2.store --sources runs/vqa --shots 16 \\
      --modes prompt,prompt_a,all --output runs/few_shot_nlvr2"""


def main(arguments: list[str]) -> None:
    """Train and evaluate from every source, and tell which one validation chooses; the same arguments go on."""
    options = _parser().parse_intermixed_args(arguments)
    # An option that takes several values takes settings behind it too.
    options.overrides += [text for text in options.sources if "=" in text]
    sources = source_names([Path(text) for text in options.sources if "=" not in text])
    settings, data, features = _settings(options)
    shots, modes = _numbers(options.shots), _modes(options.modes)
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}; give how many seeds, 1 or more")
    if not sources and not options.scratch:
        raise UsageError("There is nothing to compare: give --sources RUN ..., or --scratch, or both")

    from dept_vl.transfer_runs import run_transfer, source_starts

    starts = [*source_starts(sources, modes), *([Start(SCRATCH)] if options.scratch else [])]
    with StopSignal() as stop:
        outcomes = run_transfer(
            settings,
            starts,
            shots=shots,
            seeds=options.seeds,
            folder=options.output,
            data=data,
            features=features,
            command=command_text("dept_vl.transfer", arguments),
            stop=stop,
        )
    task, metric = settings.task.name, settings.task.selection_metric
    sys.stdout.write(write_results(options.output, outcomes, task=task, metric=metric, sources=sources))
    say(f"Wrote results.md, results.csv and results.json in {options.output}")


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.transfer",
        "Train a task on few examples from each of several trained sources, choose one by validation, and compare.",
        EXAMPLES,
    )
    parser.add_argument("--task", required=True, metavar="TASK", help=f"one of: {', '.join(layer_names('task'))}")
    parser.add_argument("--data", required=True, action="append", metavar="DIR", help="folder of the official files")
    parser.add_argument(
        "--features", action="append", default=[], metavar="STORE", help="what extract wrote, for a task with images"
    )
    parser.add_argument("--sources", nargs="+", default=[], metavar="RUN", help="finished runs, or adapter folders")
    parser.add_argument("--scratch", action="store_true", help="also train without a source")
    parser.add_argument(
        "--shots", default="4,16,32", metavar="K,...", help="training examples in all (default: 4,16,32)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument(
        "--modes", default="all", metavar="MODE,...", help=f"what is taken over, of: {', '.join(MODES)} (default: all)"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the runs and the results")
    for group in ("method", "backbone", "recipe"):
        parser.add_argument(f"--{group}", metavar="NAME", help="as for dept_vl.train; it must suit the sources")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="any setting of configs/base.yaml"
    )
    return parser


def _settings(options: Namespace) -> tuple[Settings, dict[str, Path], dict[str, Path]]:
    """What all runs have in common: settings, and the task's data folder and feature store."""
    taken = [override for override in options.overrides if override.partition("=")[0] in SET_HERE]
    if taken:
        raise UsageError(f"{taken[0]!r}: this is set by --shots, --seeds, --sources and --modes. Use those")
    data = paths_by_task("--data", options.data, [options.task])
    chosen = {group: getattr(options, group) for group in ("task", "method", "backbone", "recipe")}
    settings = load_settings(chosen, options.overrides, data=data)
    if options.features and not settings.task.images_per_example:
        raise UsageError(f"--features is of no use for {options.task}, which has no images. Leave it out")
    pictured = [options.task] if settings.task.images_per_example else []
    return settings, data, paths_by_task("--features", options.features, pictured)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UsageError(f"--shots is {text!r}; give numbers of 1 or more joined by commas, as in 4,16,32")
    return list(dict.fromkeys(map(int, parts)))


def _modes(text: str) -> list[str]:
    modes = [part.strip() for part in text.split(",")]
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise UsageError(f"--modes has {unknown[0]!r}; it takes some of {', '.join(MODES)}, joined by commas")
    return list(dict.fromkeys(modes))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
