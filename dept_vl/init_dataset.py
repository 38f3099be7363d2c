"""Own data: a table of images, questions and answers into a folder to train on.

python -m dept_vl.init_dataset TABLE --task TASK --images DIR --output DIR
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dept_vl.command_line import Parser, command_text, run, say
from dept_vl.config import load_settings
from dept_vl.own_data.formats import ANNOTATORS, task_files
from dept_vl.own_data.rows import FORMS, OwnRow, read_table
from dept_vl.own_data.split import DEFAULT, parse_fractions, split_as_said, split_by_image
from dept_vl.own_data.table import Column
from dept_vl.tasks.task import load_task
from dept_vl.tasks.vqa import majority_answer
from dept_vl.types import Prediction
from feature_extraction.durable import PARTIAL_SUFFIX, commit_directory, write_durably
from feature_extraction.errors import InputDataError, UsageError

EXAMPLES = """\
  python -m dept_vl.init_dataset questions.jsonl --task vqa --images photos --output data/mine
  python -m dept_vl.init_dataset captions.csv --task caption --images photos --output data/mine --split 0.9,0.05,0.05"""


def main(arguments: list[str]) -> None:
    """Check a table, split it, write it in the task's formats, and say what to do next."""
    parser = Parser(
        "dept_vl.init_dataset",
        "Turn a table of images and questions, captions or statements into a data folder: checked, split by image.",
        EXAMPLES,
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="a .csv with a header line, or a .jsonl; UTF-8")
    parser.add_argument("--task", required=True, choices=list(FORMS), help="what the table is for")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder to write")
    parser.add_argument(
        "--split", metavar="A,B,C", help=f"shares of train, validation and test (default: {DEFAULT}; not with a column)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    options = parser.parse_args(arguments)
    fractions = parse_fractions(options.split or DEFAULT)
    output = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputDataError(f"{output} exists and is not an empty folder. Give a new folder, or remove that one")

    table = read_table(options.table, options.task, options.images)
    if table.rows[0].split is None:
        splits = split_by_image(table.rows, fractions, options.seed)
    elif options.split is None:
        splits = split_as_said(table.rows)
    else:
        raise UsageError(f"--split is given, but {options.table} has a column that says the split. Leave out one")
    say(f"{options.table}: {len(table.rows):,} rows without a fault")
    for note in (*table.notes, *_too_few_answers(options.task, table.rows)):
        say(f"note: {note}")
    if options.dry_run:
        for line in _sizes(splits):
            say(line)
        return
    for line in write(options.task, splits, output):
        say(line)
    store, name = f"{output}.store", output.name
    extract = ["--images", str(options.images), "--output", store, "--features", "efficientnet_lite0"]
    train = ["--task", options.task, "--data", str(output), "--features", store, "--output", f"runs/{name}"]
    say(f"Wrote {output}. Next:")
    say(f"  {command_text('dept_vl.extract', extract)}")
    say(f"  {command_text('dept_vl.train', train)}")


def write(task: str, splits: Mapping[str, Sequence[OwnRow]], output: Path) -> list[str]:
    """Write the folder in one step, after the task has read it; what there is to say about its content."""
    partial = Path(f"{output}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a stopped command
    partial.mkdir(parents=True)
    for name, content in task_files(task, splits).items():
        write_durably(partial / name, content)
    found = list(_summary(partial, task, splits))
    commit_directory(partial, output)
    return found


def _summary(folder: Path, task: str, splits: Mapping[str, Sequence[OwnRow]]) -> Iterator[str]:
    """The sizes of the splits, the accuracy of always giving the most frequent training answer, and what is cut."""
    settings = load_settings({"task": task}, [], data={task: folder}).task
    module = load_task(settings)
    examples = {name: module.read(folder, name) for name in splits}
    baselines = dict.fromkeys(splits, "")
    if task != "caption":  # of which none is most frequent
        answer = majority_answer(examples["train"])
        for name, members in examples.items():
            scores = module.score([Prediction(one.example_id, answer) for one in members], members)
            baselines[name] = f'  always "{answer}": {scores.metrics["accuracy"]:.2f} %'
    for size, baseline in zip(_sizes(splits), baselines.values(), strict=True):
        yield size + baseline
    everything = [one for members in examples.values() for one in members]
    texts = [f"{settings.prefix}{one.text}" for one in everything]
    targets = [target.text for one in everything for target in one.targets]
    text, answers = FORMS[task].text, FORMS[task].answers
    if text:
        yield from _cut(text, texts, "max_text_length", settings.max_text_length)
    yield from _cut(answers, targets, "max_target_length", settings.max_target_length)


def _cut(column: Column, texts: Sequence[str], key: str, limit: int) -> Iterator[str]:
    """That texts are too long for the task's settings, as far as words can tell: a word is one token or more."""
    lengths = [len(text.split()) for text in texts]
    cut = sum(length >= limit for length in lengths)  # the last token is the end of the text
    if cut:
        yield (
            f'note: {cut:,} texts of "{column.name}" are longer (up to {max(lengths)} words) than task.{key}={limit} '
            f"tokens, and are cut in training. A larger {key} can stand in task.yaml"
        )


def _sizes(splits: Mapping[str, Sequence[OwnRow]]) -> Iterator[str]:
    for name, rows in splits.items():
        images = len({image_id for row in rows for image_id in row.image_ids})
        yield f"{name:10} {len(rows):7,} rows  {images:7,} images"


def _too_few_answers(task: str, rows: Sequence[OwnRow]) -> Iterator[str]:
    count = sum(len(row.answers) < ANNOTATORS for row in rows)
    if task == "vqa" and count:
        yield (
            f"{count:,} questions have fewer than {ANNOTATORS} answers, which are repeated in turn up to {ANNOTATORS}: "
            "the official accuracy counts on so many people"
        )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
