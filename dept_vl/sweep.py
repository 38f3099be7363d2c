"""Compare methods at equal budget by a grid of runs: ``python -m dept_vl.sweep --help``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dept_vl.command_line import Parser, StopSignal, paths_by_task, run, say
from dept_vl.config import layer_names
from dept_vl.settings import METHODS, nearest
from dept_vl.sweeping.grid import Grid, backbone_label, check_reference, read_override, read_seeds, setups
from feature_extraction.errors import UsageError

if TYPE_CHECKING:
    from dept_vl.sweeping.outcome import Outcome
    from dept_vl.sweeping.runner import How

EXAMPLES = """\
  python -m dept_vl.sweep --methods dept,prompt,lora,full --tasks vqa,nlvr2 --data vqa=vqa/ --data nlvr2=nlvr2/ \\
      --features vl.store --seeds 3 --budget 76800 --output sweeps/vl recipe=easy_vqa
  python -m dept_vl.sweep --methods dept,lora --tasks rte --data glue/RTE --output sweeps/rte --jobs 4 --search 12 \\
      dept:method.prompt_length=20,40,60 lora:optimizer.adapter_lr=1e-3 training.steps=3000 training.epochs=null"""


def main(arguments: list[str]) -> None:
    """Run what is not done yet, and write the results; the same arguments go on."""
    options = _parser().parse_intermixed_args(arguments)
    grid = _grid(options)
    for name, least in (("jobs", 1), ("search", 0)):
        if getattr(options, name) < least:
            raise UsageError(f"--{name} is {getattr(options, name)}; give {least} or more")
    if options.launcher and options.jobs > 1 and not options.slurm:
        raise UsageError("--launcher gives a run all GPUs, so that runs go one after the other. Leave out --jobs")
    several = [one for one in grid.overrides if options.search and one.key.endswith("_lr") and len(one.values) > 1]
    if several:
        raise UsageError(f"{several[0].text!r}: --search chooses the rates. Give one value to start from, or none")

    if options.reference is not None:
        check_reference(options.reference, setups(grid))

    from dept_vl.sweeping.runner import How, collect, run_grid, run_unit

    how = How(options.jobs, options.search, options.launcher, options.costs)
    with StopSignal() as stop:
        if options.cell is not None:
            run_unit(grid, options.cell, options.output, stop=stop, how=how)
            return
        if options.slurm:
            _write_script(grid, options, how, stop)
            return
        if options.collect:
            outcomes = collect(grid, options.output, how=how)
        else:
            outcomes = run_grid(grid, options.output, stop=stop, how=how)
    _write(grid, outcomes, options, how)


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.sweep",
        "Train and evaluate methods on tasks with several seeds, each cell an ordinary run, and compare them.",
        EXAMPLES,
    )
    some = "some, joined by commas, of: "
    parser.add_argument("--methods", required=True, metavar="M,...", help=some + ", ".join(METHODS))
    parser.add_argument("--tasks", required=True, metavar="T,...", help=some + ", ".join(layer_names("task")))
    parser.add_argument("--data", required=True, action="append", metavar="[TASK=]DIR", help="as for dept_vl.train")
    parser.add_argument("--features", action="append", default=[], metavar="[TASK=]STORE", help="as for dept_vl.train")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the runs and the results")
    parser.add_argument(
        "--backbones", default="t5-mini", metavar="B,...", help="as for dept_vl.train (default: t5-mini)"
    )
    parser.add_argument("--seeds", default="3", metavar="N", help="0 to N - 1, or a list: 0,3,7 or 5, (default: 3)")
    parser.add_argument(
        "--budget", type=int, metavar="N", help="parameters of each method's own, but for full and visual_only"
    )
    parser.add_argument("--reference", metavar="METHOD", help="what others are tested against (default: dept)")
    parser.add_argument(
        "--search", type=int, default=0, metavar="N", help="trials of learning rates for every row (default: 0, none)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument(
        "--launcher", metavar="TEXT", help='of each run, as in "accelerate launch --num_processes 4 -m"'
    )
    parser.add_argument("--no-costs", dest="costs", action="store_false", help="leave out time, memory and latency")
    parser.add_argument("--slurm", type=Path, metavar="FILE", help="write a SLURM array script instead of running")
    parser.add_argument("--cell", type=int, metavar="I", help="run one cell of the array")
    parser.add_argument("--collect", action="store_true", help="write the results of what is there; run nothing")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="[SCOPE:]key=v1,...",
        help="any setting of configs/base.yaml; several values multiply the runs; SCOPE is a method, task or backbone",
    )
    return parser


def _grid(options: Namespace) -> Grid:
    methods = _names("--methods", options.methods, METHODS)
    tasks = _names("--tasks", options.tasks, layer_names("task"))
    backbones = tuple(dict.fromkeys(part.strip() for part in options.backbones.split(",") if part.strip()))
    if options.budget is not None and options.budget < 1:
        raise UsageError(f"--budget is {options.budget}; give a number of parameters, 1 or more")
    names = [*methods, *tasks, *backbones, *map(backbone_label, backbones)]
    return Grid(
        methods=methods,
        tasks=tasks,
        backbones=backbones,
        seeds=read_seeds(options.seeds),
        data=paths_by_task("--data", options.data, tasks),
        features=_stores(options.features, tasks),
        overrides=tuple(read_override(text, names) for text in options.overrides),
        budget=options.budget,
    )


def _names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        name = unknown[0] if unknown else text
        raise UsageError(f"{option} has {name!r}.{nearest(name, known)} There are: {', '.join(known)}")
    return names


def _stores(values: Sequence[str], tasks: Sequence[str]) -> dict[str, Path]:
    """The feature store of each task with images."""
    from dept_vl.config import load_settings

    pictured = [task for task in tasks if load_settings({"task": task}, []).task.images_per_example]
    if values and not pictured:
        raise UsageError(f"--features is of no use for {', '.join(tasks)}, without images. Leave it out")
    return paths_by_task("--features", values, pictured) if pictured else {}


def _write_script(grid: Grid, options: Namespace, how: How, stop: StopSignal) -> None:
    from dept_vl.sweeping.possible import why_impossible
    from dept_vl.sweeping.slurm import slurm_script
    from feature_extraction.durable import write_durably

    impossible = why_impossible(grid, setups(grid), options.output, stop)
    script = slurm_script(
        grid, options.output, list(impossible), script=options.slurm, how=how, reference=options.reference
    )
    (options.output / "logs").mkdir(parents=True, exist_ok=True)
    write_durably(options.slurm, script.encode())
    say(f"Wrote {options.slurm}. Its first lines say how it is submitted")


def _write(grid: Grid, outcomes: Sequence[Outcome], options: Namespace, how: How) -> None:
    """Write all results; a sweep with failures or gaps fails, with what is there written all the same."""
    from dept_vl.sweeping.outcome import FAILED, MISSING
    from dept_vl.sweeping.report import write_report

    text = write_report(grid, outcomes, options.output, reference=options.reference, searched=bool(how.trials))
    sys.stdout.write(text)
    say(f"Wrote results.csv, table.csv, table.md, table.tex and the plots in {options.output}")
    failed = [outcome for outcome in outcomes if outcome.state == FAILED]
    missing = [outcome for outcome in outcomes if outcome.state == MISSING]
    for outcome in failed:
        say(f"Failed: {outcome.folder} (exit code {outcome.exit_code}): {outcome.reason}")
    if failed or missing:
        raise UnfinishedError(
            f"{len(failed)} of {len(outcomes)} runs have failed and {len(missing)} have not been run. "
            "The results are of the others. The same command tries them again"
        )


class UnfinishedError(RuntimeError):
    """Some runs of a sweep have failed."""

    exit_code = 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
