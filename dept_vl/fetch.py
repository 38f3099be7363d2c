"""Text data sets of the Hugging Face hub as a data folder: ``python -m dept_vl.fetch --help``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept_vl.command_line import Parser, run, say
from feature_extraction.durable import (
    PARTIAL_SUFFIX,
    append_durably,
    commit_directory,
    sha256_of_file,
    write_durably,
)
from feature_extraction.errors import InputDataError, UsageError

if TYPE_CHECKING:
    from dept_vl.formats.hub import HubSplit
    from dept_vl.formats.rows import HubSource

RECORD = "fetched.json"  # in the data folder: where its rows are from
WRITTEN_AT_ONCE = 10_000  # rows
EXAMPLES = """\
  python -m dept_vl.fetch --task rte --output data/rte
  python -m dept_vl.fetch --task winogrande --config winogrande_s --output data/winogrande_s"""


def main(arguments: list[str]) -> None:
    """Fetch the data set unless it is there, and say what is in it."""
    parser = Parser(
        "dept_vl.fetch",
        "Download a text data set from the Hugging Face hub, as rows that --data takes in the place of its official "
        "files.",
        EXAMPLES,
    )
    parser.add_argument("--task", required=True, metavar="TASK", help="name of the task, such as rte")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--repository", metavar="NAME", help="another copy on the hub, or a local folder (default: the task's own)"
    )
    parser.add_argument("--config", metavar="NAME", help="its configuration (default: the task's own)")
    parser.add_argument("--revision", metavar="NAME", help="its commit, tag or branch (default: main)")
    options = parser.parse_args(arguments)
    source = _source(options.task, options.repository, options.config)
    if fetch(source, options.output, revision=options.revision):
        say(f"Wrote {options.output}")
    else:
        say(f"{options.output} is there already; nothing to do")
    for line in summary(options.output):
        say(line)


def fetch(source: HubSource, output: Path, *, revision: str | None = None) -> bool:
    """Write the rows of each split and a record of their origin to ``output``, in one step; False if they are there.

    Raises:
        InputDataError: ``output`` holds something else, or the hub does not give the data set.
        DamagedError: the data set's files cannot be read.
    """
    from dept_vl.formats.hub import open_hub

    wanted = {"repository": source.repository, "config": source.config}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = _record(output)
        if wanted.items() <= found.items() and revision in (None, found["revision"]):
            return False
        raise InputDataError(f"{output} holds something else than this data set. Give a new folder, or remove that one")
    data = open_hub(source, revision=revision)
    partial = output.with_name(output.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)  # left by a stopped download
    partial.mkdir(parents=True)
    splits = {
        split: _write(partial / file, data.splits[split])
        for file, split in {source.rows_file(name): split for name, split in source.splits.items()}.items()
    }
    record = {**wanted, "revision": data.revision, "splits": splits}
    write_durably(partial / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    commit_directory(partial, output)
    return True


def summary(folder: Path) -> Iterator[str]:
    """Where the rows of a folder are from; for each split its size, and what the numbers of its classes mean."""
    record = _record(folder)
    origin = (record["repository"], record["config"], record["revision"])
    yield " ".join(part for part in origin if part)
    for split, one in record["splits"].items():
        classes = "".join(f"  {column}: {', '.join(names)}" for column, names in one["class_names"].items())
        yield f"{split:22} {one['rows']:9,} rows{classes}"


def _source(task_name: str, repository: str | None, config: str | None) -> HubSource:
    """Where the hub has a task's data set, with what the user changes of it.

    Raises:
        UsageError: the task's data set is not fetched from the hub.
    """
    from dept_vl.config import load_settings
    from dept_vl.tasks.task import load_task

    source = load_task(load_settings({"task": task_name}, []).task).hub
    if source is None:
        raise UsageError(
            f"The data of task {task_name} is not fetched from the hub. Give its official files as --data, as "
            "docs/tasks says"
        )
    return source._replace(repository=repository or source.repository, config=config or source.config)


def _write(path: Path, split: HubSplit) -> dict[str, Any]:
    """Write a split's rows as JSON lines, and give its entry of the record."""
    path.touch()
    rows = split.rows
    while lines := [json.dumps(row) + "\n" for row in islice(rows, WRITTEN_AT_ONCE)]:
        append_durably(path, "".join(lines).encode())
    return {"rows": split.size, "class_names": split.class_names, "sha256": sha256_of_file(path)}


def _record(folder: Path) -> dict[str, Any]:
    """The record of a folder; empty if there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
