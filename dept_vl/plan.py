"""What candidate settings would cost on this machine, measured: ``python -m dept_vl.plan --help``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from dept_vl.command_line import Parser, command_text, paths_by_task, run, say
from dept_vl.config import layer_names, load_settings
from dept_vl.costs.table import Limits, Row, best_row, bytes_of, markdown, seconds_of, to_json
from dept_vl.settings import CHOICES, OFFSETS, Settings
from feature_extraction.durable import write_durably
from feature_extraction.errors import Interrupted, UsageError

WARMUP = 3  # steps that are not timed
PROMPT_LENGTHS = "0,20,40,60,80"
GROUPS = ("method", "backbone", "recipe")
# Settings that an option of this command gives several values.
VARIED = {
    "budget": "method.budget",
    "prompt_lengths": "method.prompt_length",
    "batch_sizes": "data.batch_size",
    "precisions": "training.precision",
}
EXAMPLES = """\
  python -m dept_vl.plan --task vqa --backbone google-t5/t5-base --budget 76800 --features coco.store --time 6h \\
      --memory 16G --batch-sizes 16,32 --precisions fp32,bf16 training.steps=30000 training.epochs=null
  python -m dept_vl.plan --task sst2 --data glue/SST-2 --prompt-lengths 20,60 --output plan.json
  python -m dept_vl.plan --check runs/dept"""


class Candidate(NamedTuple):
    """One choice of settings, or why it is none."""

    settings: Settings | UsageError
    row: Row  # without a cost yet


def main(arguments: list[str]) -> None:
    """Measure every candidate and print a table, or compare a finished run with what is measured for it."""
    options = _parser().parse_intermixed_args(arguments)
    if options.steps < 1:
        raise UsageError(f"--steps is {options.steps}; give how many steps to time, 1 or more")
    if options.check is not None:
        _check_alone(options)
        from dept_vl.costs.check import check_run

        sys.stdout.write(check_run(options.check, steps=options.steps, warmup=WARMUP))
        return
    if options.task is None:
        raise UsageError("--task is missing. Name what to plan for, as in --task vqa, or a finished run: --check RUN")
    _plan(options, command_text("dept_vl.plan", arguments))


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.plan",
        "Time a few real steps of each candidate at one parameter budget, and tell what training it would take.",
        EXAMPLES,
    )
    parser.add_argument("--task", metavar="TASK[,TASK]", help=f"of: {', '.join(layer_names('task'))}")
    parser.add_argument(
        "--data", action="append", default=[], metavar="DIR", help="as for dept_vl.train; without it, made-up data"
    )
    parser.add_argument(
        "--features", action="append", default=[], metavar="STORE", help="as for dept_vl.train; or for its shape alone"
    )
    for group in GROUPS:
        parser.add_argument(f"--{group}", metavar="NAME", help="as for dept_vl.train")
    parser.add_argument("--budget", type=int, metavar="N", help="parameters of the method's own (method.budget)")
    parser.add_argument(
        "--prompt-lengths", metavar="M,...", help=f"of methods that split the budget (default: {PROMPT_LENGTHS})"
    )
    parser.add_argument("--batch-sizes", metavar="B,...", help="examples in a step (default: that of the settings)")
    parser.add_argument("--precisions", metavar="P,...", help="fp32, bf16 (default: that of the settings)")
    parser.add_argument("--time", metavar="T", help="limit of the whole training: 90m, 6h, 2d")
    parser.add_argument("--memory", metavar="SIZE", help="limit of its peak: 512M, 16G")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything measured here too, as JSON")
    parser.add_argument("--check", type=Path, metavar="RUN", help="compare a finished run's real costs instead")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="any setting of configs/base.yaml"
    )
    return parser


def _plan(options: Namespace, command: str) -> None:
    names = list(dict.fromkeys(name.strip() for name in options.task.split(",")))
    data = paths_by_task("--data", options.data, names) if options.data else None
    settings, candidates = _candidates(options, data or {})
    pictured = [name for name in names if settings.tasks[name].images_per_example]
    if options.features and not pictured:
        raise UsageError(f"--features is of no use for {', '.join(names)}, which has no images. Leave it out")
    needed = pictured and (data is not None or options.features)
    features = paths_by_task("--features", options.features, pictured) if needed else {}
    limits = Limits(options.time and seconds_of(options.time), options.memory and bytes_of(options.memory))
    if limits.seconds and data is None and settings.training.steps is None:
        raise UsageError(
            "--time needs the number of steps, which training.epochs does not tell without the data. Give --data, or "
            "training.steps=N training.epochs=null"
        )
    rows: list[Row] = []
    try:
        for row in _measured(candidates, data, features, steps=options.steps):
            rows.append(row)
    except KeyboardInterrupt:
        message = f"{len(rows)} of {len(candidates)} candidates are measured; the same command measures all anew"
        raise Interrupted(message) from None
    finally:
        if rows:
            _report(rows, limits, options.output, command)


def _candidates(options: Namespace, data: Mapping[str, Path]) -> tuple[Settings, list[Candidate]]:
    """The settings that all have in common, and every combination of the varied ones."""
    own = {override.partition("=")[0] for override in options.overrides}
    for option, key in VARIED.items():
        if getattr(options, option) is not None and key in own:
            raise UsageError(f"{key} is set by --{option.replace('_', '-')} already. Give one of the two")
    chosen = {"task": options.task} | {group: getattr(options, group) for group in GROUPS}
    fixed = [*options.overrides, *([] if options.budget is None else [f"method.budget={options.budget}"])]
    # The default prompt length is not asked for, and may be too long for the budget.
    shortest = [] if VARIED["prompt_lengths"] in own else ["method.prompt_length=0"]
    settings = load_settings(chosen, [*fixed, *shortest], data=data)
    splits = OFFSETS.get(settings.method.name, "none") != "none"
    lengths: Sequence[int | None] = [None]  # None: as in the settings
    sizes: Sequence[int | None] = [None]
    precisions: Sequence[str | None] = [None]
    if splits and shortest:
        lengths = _numbers("--prompt-lengths", options.prompt_lengths or PROMPT_LENGTHS, least=0)
        if "method.rank" not in own:  # a recipe's is that of its own prompt length
            fixed.append("method.rank=null")
    elif options.prompt_lengths is not None:
        raise UsageError(
            f"--prompt-lengths is of no use for {settings.method.name}, which splits no budget. Leave it out"
        )
    if options.batch_sizes is not None:
        sizes = _numbers("--batch-sizes", options.batch_sizes, least=1)
        if any(task.batch_size for task in settings.tasks.values()):  # it would come before that of all
            fixed.append("task.batch_size=null")
    if options.precisions is not None:
        precisions = _precisions(options.precisions)
    own_length = settings.method.prompt_length if splits else None
    own_size = next(iter(settings.tasks.values())).batch_size or settings.data.batch_size
    candidates = []
    for length, size, precision in product(lengths, sizes, precisions):
        values = {"method.prompt_length": length, "data.batch_size": size, "training.precision": precision}
        overrides = [*fixed, *(f"{key}={value}" for key, value in values.items() if value is not None)]
        row = Row(own_length if length is None else length, size or own_size, precision or settings.training.precision)
        row = row._replace(command=_train_command(options, settings, row, overrides))
        found: Settings | UsageError
        try:
            found = load_settings(chosen, overrides, data=data)
        except UsageError as error:  # too long a prompt, as what all have in common is in order
            found = error
        candidates.append(Candidate(found, row))
    return settings, candidates


def _train_command(options: Namespace, settings: Settings, row: Row, overrides: Sequence[str]) -> str:
    """The command that trains a candidate; the place of data that was not given stands in capitals."""
    pictured = any(task.images_per_example for task in settings.tasks.values())
    folder = f"runs/{settings.method.name}-{row.name}".replace(", ", "-").replace(" ", "").replace("=", "")
    chosen = {
        "task": [options.task],
        "data": options.data or ["DIR"],
        "features": options.features or (["STORE"] if pictured else []),
        "output": [folder],
        **{group: [value] for group in GROUPS if (value := getattr(options, group))},
    }
    given = [text for option, values in chosen.items() for value in values for text in (f"--{option}", value)]
    return command_text("dept_vl.train", [*given, *overrides])


def _measured(
    candidates: Sequence[Candidate], data: Mapping[str, Path] | None, features: Mapping[str, Path], *, steps: int
) -> Iterator[Row]:
    """Each candidate's row, measured in a process of its own.

    Raises:
        UsageError: of the first candidate, if none of them is possible.
    """
    from dept_vl import cost

    refused: list[UsageError] = []
    for number, (settings, row) in enumerate(candidates, start=1):
        say(f"[{number} of {len(candidates)}] {row.name}")
        try:
            if isinstance(settings, UsageError):
                raise settings
            yield row._replace(cost=cost.measure_apart(settings, data, features, steps=steps, warmup=WARMUP))
        except MemoryError:
            yield row._replace(fault="out of memory")
        except UsageError as error:
            refused.append(error)
            if len(refused) == len(candidates):
                raise refused[0] from None
            yield row._replace(fault=str(error))


def _report(rows: Sequence[Row], limits: Limits, output: Path | None, command: str) -> None:
    """Print the table and what to begin with, and write it all to a file."""
    if output is not None:
        write_durably(output, to_json(rows, limits, command=command))
    sys.stdout.write(markdown(rows, limits))
    measured = [row.cost for row in rows if row.cost is not None]
    if any(cost.synthetic for cost in measured):
        sys.stdout.write("\nMeasured on made-up examples of the longest texts and targets: an upper bound.\n")
    best = best_row(rows, limits)
    if best is not None:
        sys.stdout.write(f"\nTo begin with: {best.name}\n\n    {best.command}\n")
    elif measured:
        sys.stdout.write("\nNo candidate keeps the limits.\n")


def _numbers(option: str, text: str, *, least: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise UsageError(f"{option} is {text!r}; give numbers of {least} or more joined by commas, as in 20,40")
    return list(dict.fromkeys(map(int, parts)))


def _precisions(text: str) -> list[str]:
    parts, known = [part.strip() for part in text.split(",")], CHOICES["training.precision"]
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise UsageError(f"--precisions has {unknown[0]!r}; it takes some of {', '.join(map(str, known))}")
    return list(dict.fromkeys(parts))


def _check_alone(options: Namespace) -> None:
    """Refuse options that a check does not look at.

    Raises:
        UsageError: names the first of them.
    """
    taken = [name for name, value in vars(options).items() if value and name not in ("check", "steps", "debug")]
    if taken:
        name = "key=value" if taken[0] == "overrides" else f"--{taken[0].replace('_', '-')}"
        raise UsageError(f"--check takes all settings from the run; leave {name} out")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
