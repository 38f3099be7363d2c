"""Check a leaderboard file of any tool before the server does: ``python -m dept_vl.validate --help``."""

from __future__ import annotations

import sys
from pathlib import Path

from dept_vl.command_line import Parser, run
from feature_extraction.errors import InputDataError

EXAMPLES = """\
  python -m dept_vl.validate --task vqa --submission results.json \\
      --questions v2_OpenEnded_mscoco_test2015_questions.json
  python -m dept_vl.validate --task caption --submission results.zip --questions annotations/"""


def main(arguments: list[str]) -> None:
    """Check the file, and say on stdout what was checked.

    Raises:
        InputDataError: the file has faults; all are named.
    """
    parser = Parser("dept_vl.validate", "Name every fault for which a server would refuse a file.", EXAMPLES)
    parser.add_argument("--task", required=True, metavar="TASK", help="name of the task, such as vqa")
    parser.add_argument("--submission", required=True, type=Path, metavar="FILE", help="the file to upload")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="the official questions of the split, or the folder of several files, to check that every id is answered",
    )
    options = parser.parse_args(arguments)
    sys.stdout.write(_checked(options.task, options.submission, options.questions) + "\n")


def _checked(task_name: str, submission: Path, questions: Path | None) -> str:
    from dept_vl.config import load_settings
    from dept_vl.formats.submission import contents
    from dept_vl.tasks.task import load_task

    task = load_task(load_settings({"task": task_name}, []).task)
    faults = task.check_submission(submission, questions)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputDataError(f"{submission} has {count} for a leaderboard file of {task_name}: {'; '.join(faults)}")
    ids = (
        f"exactly the ids of {questions}"
        if questions
        else "each id once. Not checked: whether they are all ids of the split, and of no other (give --questions)"
    )
    return f"{submission} is a leaderboard file of {task_name}: {contents(submission)}, {ids}"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
