"""Evaluate a trained run, or score an existing leaderboard file: ``python -m dept_vl.evaluate --help``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dept_vl.command_line import Parser, run, say
from feature_extraction.errors import UsageError

if TYPE_CHECKING:
    from dept_vl.types import Scores

FILES = ("questions", "choices")  # beside the annotations, of use for some tasks
EXAMPLES = """\
  python -m dept_vl.evaluate --run runs/dept --split test
  python -m dept_vl.evaluate --task vqa --predictions results.json \\
      --annotations v2_mscoco_val2014_annotations.json --output metrics.json --per-example scores.json"""


def main(arguments: list[str]) -> None:
    """Evaluate as the arguments say, and write the scores to stdout."""
    parser = Parser(
        "dept_vl.evaluate",
        "Generate, score and write the leaderboard file of a trained run (--run), or score an existing file (--task).",
        EXAMPLES,
    )
    trained = parser.add_argument_group("a trained run")
    trained.add_argument("--run", type=Path, metavar="RUN", help="folder that dept_vl.train wrote")
    trained.add_argument("--split", metavar="SPLIT", help="train, validation, test, ... as in the task's settings")
    trained.add_argument(
        "--single", action="store_true", help="this split alone, where the server takes several in one file (COCO)"
    )
    trained.add_argument("--data", type=Path, metavar="DIR", help="the data set, if it has moved since the training")
    trained.add_argument("--features", type=Path, metavar="STORE", help="the store, if it has moved since the training")
    trained.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="setting to change, such as task.num_beams=5"
    )
    existing = parser.add_argument_group("an existing file (no model, no torch)")
    existing.add_argument(
        "--task", metavar="TASK", help="name of the task, such as vqa; with --run, which of its tasks (default: all)"
    )
    existing.add_argument("--predictions", type=Path, metavar="FILE", help="in the official leaderboard format")
    existing.add_argument("--annotations", type=Path, metavar="FILE", help="the official annotations")
    existing.add_argument("--questions", type=Path, metavar="FILE", help="the official questions, to check the ids of")
    existing.add_argument("--choices", type=Path, metavar="FILE", help="GQA's choices, for validity and plausibility")
    existing.add_argument("--per-example", type=Path, metavar="FILE", help="write the score of each example, 0 to 1")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="of a run: folder for all files (default: RUN/evaluation/SPLIT); of a file: its metrics.json",
    )
    options = parser.parse_intermixed_args(arguments)
    _check_combination(options)
    if options.run is None:
        scores = _score_file(options)
        _explain(scores)
        sys.stdout.write(_table(scores.metrics))
    else:
        _evaluate_run(options)


def _evaluate_run(options: Namespace) -> None:
    from dept_vl.inference import evaluate_run

    evaluations = evaluate_run(
        options.run,
        options.split,
        options.output,
        options.overrides,
        task=options.task,
        features=options.features,
        data=options.data,
        single=options.single,
    )
    for task, split, scores in evaluations:
        _explain(scores)
        title = f"{task} {split}\n" if len(evaluations) > 1 else ""
        sys.stdout.write(title + _table(scores.metrics))


def _explain(scores: Scores) -> None:
    """Say why a figure is missing."""
    for name, reason in scores.reasons.items():
        say(f"{name} is null: {reason}")


def _score_file(options: Namespace) -> Scores:
    from dept_vl.config import load_settings
    from dept_vl.leaderboard import score_files, write_numbers
    from dept_vl.tasks.task import OfficialFiles, load_task

    task = load_task(load_settings({"task": options.task}, []).task)
    unused = [name for name in FILES if getattr(options, name) and name not in task.file_options]
    if unused:
        raise UsageError(f"--{unused[0]} is of no use for task {options.task}. Leave it out")
    files = OfficialFiles(options.annotations, questions=options.questions, choices=options.choices)
    scores = score_files(task, options.predictions, files)
    if options.per_example:
        write_numbers(options.per_example, scores.per_example)
    if options.output:
        write_numbers(options.output, scores.metrics)
    return scores


def _check_combination(options: Namespace) -> None:
    """Refuse options that do not belong together, before any work."""
    if options.run is None and options.task is None:
        raise UsageError(
            "Give either --run RUN --split SPLIT, to evaluate a trained run, or --task TASK --predictions FILE "
            "--annotations FILE, to score an existing file"
        )
    mode, needed, foreign = (
        ("run", ("split",), ("predictions", "annotations", *FILES, "per_example"))
        if options.run is not None
        else ("task", ("predictions", "annotations"), ("split", "single", "data", "features", "overrides"))
    )
    missing = [_flag(name) for name in needed if not getattr(options, name)]
    if missing:
        raise UsageError(f"--{mode} needs {' and '.join(missing)}. See: python -m dept_vl.evaluate --help")
    given = [_flag(name) for name in foreign if getattr(options, name)]
    if given:
        raise UsageError(f"--{mode} does not go with {' or '.join(given)}. See: python -m dept_vl.evaluate --help")


def _flag(name: str) -> str:
    return "key=value" if name == "overrides" else f"--{name.replace('_', '-')}"


def _table(metrics: Mapping[str, float | None]) -> str:
    """The metrics as aligned lines."""
    width = max(map(len, metrics), default=0)
    return "".join(f"{name:{width}}  {'null' if value is None else value:>9}\n" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
