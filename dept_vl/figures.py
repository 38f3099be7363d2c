"""The figures and tables of the paper from our own runs: ``python -m dept_vl.figures --help``."""

from __future__ import annotations

import importlib
import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept_vl.command_line import Parser, StopSignal, command_text, paths_by_task, run, say
from dept_vl.config import layer_names, load_settings
from dept_vl.settings import INIT_PARTS, METHODS, Settings, nearest
from feature_extraction.errors import UsageError

if TYPE_CHECKING:
    from dept_vl.figures_of_paper.page import Page
    from dept_vl.figures_of_paper.sweep_results import Run

COSTS = ("fig3", "fig4", "model-size")
TABLES = ("table-glue", "table-superglue", "table-mrqa", "table-other", "table-vl")
NAMES = ("fig3", "fig4", "fig5", "model-size", *TABLES, "few-shot")
RUNS = {"methods": "dept,prompt", "seeds": 3, "budget": None, "jobs": 1, "sweep": None}
# The options of each figure beside --output, --backbones, --tasks, --data and --features, with their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "fig3": {"prompt_lengths": None, "steps": 20},
    "fig4": {"prompt_lengths": None, "steps": 20},
    "model-size": {"prompt_lengths": "40", "steps": 20},
    "fig5": {name: RUNS[name] for name in ("seeds", "jobs", "sweep")} | {"rates": "0.3,0.03,0.003"},
    **dict.fromkeys(TABLES, RUNS | {"ours_only": False}),
    "few-shot": {"methods": "dept", "seeds": 3, "shots": "4,16,32", "sources": [], "modes": "all"},
}
# As in the paper; the user's own settings are laid over them.
PAPERS_BATCH = ("data.batch_size=16", "data.evaluation_batch_size=16")
# What the figures of cost set in each measurement.
SET_HERE = (
    "method",
    "method.name",
    "method.prompt_length",
    "method.rank",
    "method.budget",
    "backbone",
    "backbone.name",
)
EXAMPLES = """\
  python -m dept_vl.figures fig3 --backbones t5-mini,google-t5/t5-small --output figures
  python -m dept_vl.figures fig5 --tasks rte --data glue/RTE --rates 0.3,0.003 --seeds 1 --output figures \\
      training.steps=300 training.epochs=null
  python -m dept_vl.figures table-glue --sweep sweeps/glue --output figures
  python -m dept_vl.figures few-shot --tasks boolq,cb --data boolq=superglue/BoolQ --data cb=superglue/CB \\
      --sources runs/mnli --output figures training.steps=500 training.epochs=null"""


def main(arguments: list[str]) -> None:
    """Measure or run what is not there yet, and write the figure; the same arguments go on."""
    options = _parser().parse_intermixed_args(arguments)
    options.overrides += [text for text in options.sources or [] if "=" in text]  # an option of several takes these too
    options.sources = [text for text in options.sources or [] if "=" not in text] or None
    _check_options(options)
    with StopSignal() as stop:
        if options.name in COSTS:
            page = _cost_figure(options, stop)
        elif options.name == "few-shot":
            page = _few_shot(options, arguments, stop)
        else:
            page = _from_runs(options, stop)

    from dept_vl.figures_of_paper.page import write_page

    files = write_page(options.output, options.name, page, command=command_text("dept_vl.figures", arguments))
    sys.stdout.write(f"{page.table}\n")
    say(f"Wrote {', '.join(files)} in {options.output}")
    if page.unfinished:
        raise UnfinishedError(
            f"{page.unfinished} run(s) of {options.name} have failed or are missing; it is of the others. "
            f"{'The command of the sweep' if options.sweep else 'The same command'} tries them again"
        )


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.figures", "Make one of the paper's figures or tables from measurements and runs.", EXAMPLES
    )
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of the figures and their runs"
    )
    parser.add_argument("--backbones", metavar="B,...", help="as for dept_vl.train (default: t5-mini)")
    parser.add_argument(
        "--tasks", metavar="T,...", help="one, whose costs are measured (default: sst2), or the columns"
    )
    parser.add_argument("--data", action="append", metavar="[TASK=]DIR", help="as for dept_vl.train")
    parser.add_argument("--features", action="append", metavar="[TASK=]STORE", help="as for dept_vl.train")
    costs = parser.add_argument_group("fig3, fig4, model-size", "without --data, made-up texts of full length")
    costs.add_argument("--prompt-lengths", metavar="M,...", help="m (default: fifths of l; of model-size one: 40)")
    costs.add_argument("--steps", type=int, metavar="N", help="timed steps of each (default: 20)")
    runs = parser.add_argument_group("fig5, tables, few-shot", "ordinary runs, or those of a finished sweep")
    runs.add_argument("--sweep", type=Path, metavar="DIR", help="the --output of dept_vl.sweep, instead of running")
    runs.add_argument("--methods", metavar="M,...", help="default: dept,prompt; of few-shot: dept")
    runs.add_argument("--seeds", type=int, metavar="N", help="0 to N - 1 (default: 3)")
    runs.add_argument("--budget", type=int, metavar="N", help="tables: parameters of each method's own")
    runs.add_argument("--jobs", type=int, metavar="N", help="runs side by side (default: 1)")
    runs.add_argument(
        "--rates", metavar="R,...", help="fig5: of P and of A, B, each with each (default: 0.3,0.03,0.003)"
    )
    runs.add_argument("--ours-only", action="store_true", default=None, help="tables: without what others report")
    runs.add_argument("--shots", metavar="K,...", help="few-shot: training examples in all (default: 4,16,32)")
    runs.add_argument("--sources", nargs="+", metavar="RUN", help="few-shot: finished runs to start from")
    runs.add_argument("--modes", metavar="MODE,...", help=f"few-shot: of {', '.join(INIT_PARTS)} (default: all)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="any setting of configs/base.yaml"
    )
    return parser


def _check_options(options: Namespace) -> None:
    """Refuse what the figure does not have, and fill in its defaults.

    Raises:
        UsageError: no such figure, an option of another one, or a number below 1.
    """
    if options.name not in NAMES:
        raise UsageError(
            f"No figure is called {options.name!r}.{nearest(options.name, NAMES)} There are: {', '.join(NAMES)}"
        )
    mine = OPTIONS[options.name]
    _check_sweep(options)
    for name in dict.fromkeys(name for every in OPTIONS.values() for name in every):
        value = getattr(options, name)
        if name not in mine and value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is of no use for {options.name}. Leave it out")
        if name in mine and value is None:
            setattr(options, name, mine[name])
    for name in ("steps", "seeds", "jobs", "budget"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; give 1 or more")
    if options.name in (*COSTS, "fig5", "few-shot"):
        try:
            importlib.import_module("matplotlib")
        except ImportError as error:
            raise UsageError(
                f'Figures need matplotlib, which cannot be imported ({error}). Run: pip install "dept_vl[sweep]"'
            ) from error


def _check_sweep(options: Namespace) -> None:
    """Refuse what would say how runs are made where they are there already."""
    how = ("backbones", "data", "features", "methods", "seeds", "budget", "jobs", "rates")
    given = [f"--{name}" for name in how if getattr(options, name) is not None] + [
        repr(one) for one in options.overrides
    ]
    if options.sweep is not None and given:
        raise UsageError(f"{given[0]} is of no use with --sweep, whose runs are there already. Leave it out")


def _cost_figure(options: Namespace, stop: StopSignal) -> Page:
    taken = [text for text in options.overrides if text.partition("=")[0] in SET_HERE]
    if taken:
        raise UsageError(f"{taken[0]!r}: this is set by --prompt-lengths and --backbones. Use those")
    (task, *others) = _names("--tasks", options.tasks or "sst2", layer_names("task"))
    if others:
        raise UsageError(f"--tasks names {len(others) + 1}, but costs are measured on one. Name one of them")
    data = paths_by_task("--data", options.data, [task]) if options.data else None
    overrides = [*PAPERS_BATCH, *options.overrides]
    settings = {
        name: load_settings({"backbone": name, "task": task, "method": "dept"}, overrides, data=data)
        for name in _backbones(options)
    }
    first = next(iter(settings.values()))
    features = _stores(options, {task: first})
    lengths = _lengths(options, first)

    from dept_vl.figures_of_paper import cost_figures
    from dept_vl.figures_of_paper.measurements import Measurements, Trial
    from dept_vl.sweeping.grid import backbone_label

    trials = [Trial(backbone_label(name), one) for name, one in settings.items()]
    measured = Measurements(options.output, data=data, features=features, steps=options.steps, stop=stop)
    points = cost_figures.measure_points(trials, lengths, measured)
    make = {
        "fig3": cost_figures.time_and_memory,
        "fig4": cost_figures.inference_speed,
        "model-size": cost_figures.model_size,
    }
    return make[options.name](points, first)


def _lengths(options: Namespace, settings: Settings) -> list[int]:
    """The values of m, without that of prompt tuning.

    Raises:
        UsageError: they are no numbers below l, or several where there is one.
    """
    longest = settings.method.budget_length
    if options.prompt_lengths is None:
        return sorted({longest * fifth // 5 for fifth in range(5)})
    parts = options.prompt_lengths.split(",")
    if not all(part.strip().isdecimal() and int(part) < longest for part in parts):
        raise UsageError(
            f"--prompt-lengths is {options.prompt_lengths!r}; give numbers below method.budget_length (l), which is "
            f"{longest}, joined by commas, as in 0,20,40. Prompt tuning with l itself is always there"
        )
    lengths = sorted({int(part) for part in parts})
    if options.name == "model-size" and len(lengths) > 1:
        raise UsageError(f"--prompt-lengths is {options.prompt_lengths!r}; model-size has one m. Give one number")
    return lengths


def _from_runs(options: Namespace, stop: StopSignal) -> Page:
    """Figure 5 or a table, from a finished sweep or one that is made here."""
    from dept_vl.figures_of_paper.method_tables import TABLES as TASKS_OF
    from dept_vl.figures_of_paper.method_tables import method_table
    from dept_vl.figures_of_paper.sweep_results import read_runs

    table = options.name.removeprefix("table-") if options.name in TABLES else None
    known = list(TASKS_OF[table].tasks) if table else layer_names("task")
    asked = _names("--tasks", options.tasks, known) if options.tasks else None
    if options.sweep is not None:
        runs, origin = read_runs(options.sweep), f"Ours: the runs of the sweep in {options.sweep}."
        tasks = asked
    else:
        if asked is None and table is None:
            raise UsageError("--tasks is missing for fig5. Give one or several, as in --tasks sst2")
        tasks = asked or known
        runs, origin = _run_sweep(options, tasks, stop)
    if table is None:
        from dept_vl.figures_of_paper.rates_figure import two_rates

        return two_rates([run for run in runs if tasks is None or run.task in tasks], origin=origin)
    there = {run.task for run in runs}
    columns = tasks or [task for task in known if task in there] or known
    return method_table(table, runs, columns, ours_only=options.ours_only, origin=origin)


def _run_sweep(options: Namespace, tasks: Sequence[str], stop: StopSignal) -> tuple[list[Run], str]:
    """Run what is not done yet, as the sweep does, in a folder beside the figure."""
    from dept_vl.sweeping.grid import Grid, read_override

    data = paths_by_task("--data", options.data or [], tasks)
    names = ("dept",) if options.name == "fig5" else tuple(_names("--methods", options.methods, METHODS))
    backbones = _backbones(options)
    overrides = [read_override(text, [*names, *tasks, *backbones]) for text in options.overrides]
    if options.name == "fig5":
        rates = _rates(options.rates)
        both = ("optimizer.prompt_lr", "optimizer.low_rank_lr")
        taken = [one.text for one in overrides if one.key in both]
        if taken:
            raise UsageError(f"{taken[0]!r}: this is set by --rates. Use that")
        overrides += [read_override(f"{key}={','.join(rates)}", []) for key in both]
    grid = Grid(
        methods=names,
        tasks=tuple(tasks),
        backbones=tuple(backbones),
        seeds=tuple(range(options.seeds)),
        data=data,
        features=_stores(options, {task: load_settings({"task": task}, []) for task in tasks}),
        overrides=tuple(overrides),
        budget=options.budget,
    )

    from dept_vl.figures_of_paper.sweep_results import read_runs
    from dept_vl.sweeping.report import write_report
    from dept_vl.sweeping.runner import How, run_grid

    folder = options.output / f"{options.name}-sweep"
    outcomes = run_grid(grid, folder, stop=stop, how=How(jobs=options.jobs, costs=False))
    write_report(grid, outcomes, folder)
    places = ", ".join(f"{task} in {path}" for task, path in data.items())
    given = f"; {' '.join(options.overrides)}" if options.overrides else ""
    return read_runs(folder), f"Ours: {places}; {', '.join(backbones)}; seeds 0 to {options.seeds - 1}{given}."


def _few_shot(options: Namespace, arguments: Sequence[str], stop: StopSignal) -> Page:
    tasks = _names("--tasks", options.tasks or "boolq,cb,scitail", layer_names("task"))
    methods = _names("--methods", options.methods, METHODS)
    (backbone, *others) = _backbones(options)
    if others:
        raise UsageError("--backbones names several, but sources belong to one. Give one, and each an --output")
    modes = _names("--modes", options.modes, INIT_PARTS)
    parts = options.shots.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UsageError(f"--shots is {options.shots!r}; give numbers of 1 or more joined by commas, as in 4,16,32")
    data = paths_by_task("--data", options.data or [], tasks)
    settings = {
        (task, method): load_settings(
            {"backbone": backbone, "task": task, "method": method}, options.overrides, data={task: data[task]}
        )
        for task in tasks
        for method in methods
    }
    features = _stores(options, {task: settings[task, methods[0]] for task in tasks})

    from dept_vl.figures_of_paper.few_shot import few_shot, run_few_shot
    from dept_vl.sweeping.grid import backbone_label
    from dept_vl.transfer_results import source_names

    found = run_few_shot(
        settings,
        source_names([Path(text) for text in options.sources]),
        modes=modes,
        shots=list(dict.fromkeys(map(int, parts))),
        seeds=options.seeds,
        folder=options.output / "few-shot-runs",
        data=data,
        features=features,
        command=command_text("dept_vl.figures", arguments),
        stop=stop,
    )
    return few_shot(found, data=data, backbone=backbone_label(backbone))


def _names(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option} has {unknown[0]!r}.{nearest(unknown[0], known)} There are: {', '.join(known)}")
    return names


def _backbones(options: Namespace) -> list[str]:
    from dept_vl.sweeping.grid import backbone_label

    names = list(dict.fromkeys(part.strip() for part in (options.backbones or "t5-mini").split(",") if part.strip()))
    labels = [backbone_label(name) for name in names]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UsageError(f"--backbones has two that are both called {twice[0]!r}. Rename one of the folders")
    return names


def _rates(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    try:
        fine = len({float(part) for part in parts}) > 1 and all(0 < float(part) < math.inf for part in parts)
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(f"--rates is {text!r}; give two learning rates or more, joined by commas, as in 0.3,0.003")
    return parts


def _stores(options: Namespace, settings: Mapping[str, Settings]) -> dict[str, Path]:
    """The feature store of each task with images; none is needed where nothing is read."""
    pictured = [task for task, one in settings.items() if one.tasks[task].images_per_example]
    if options.features and not pictured:
        raise UsageError(f"--features is of no use for {', '.join(settings)}, without images. Leave it out")
    needed = pictured and (options.features or options.data)
    return paths_by_task("--features", options.features or [], pictured) if needed else {}


class UnfinishedError(RuntimeError):
    """Some runs have failed."""

    exit_code = 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
