"""The files of several runs as the one archive that a benchmark's server takes: ``python -m dept_vl.pack --help``."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dept_vl.command_line import Parser, run, say
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError, UsageError

OFFICIAL_TEST = "official-test"  # begins the names of the splits whose files a server takes
MULTIRC = "MultiRC.jsonl"
# What stands for a task without a run: its most frequent training label, that of MNLI for AX, and of RTE for AX-b and
# AX-g; where there are no labels, a score in the middle (STS-B) or a word (ReCoRD).
PLACEHOLDERS = {
    "glue": {
        "CoLA.tsv": "1",
        "SST-2.tsv": "1",
        "MRPC.tsv": "1",
        "STS-B.tsv": "2.500",
        "QQP.tsv": "0",
        "MNLI-m.tsv": "contradiction",
        "MNLI-mm.tsv": "contradiction",
        "AX.tsv": "contradiction",
        "QNLI.tsv": "entailment",
        "RTE.tsv": "entailment",
        "WNLI.tsv": "0",
    },
    "superglue": {
        "BoolQ.jsonl": "true",
        "CB.jsonl": "contradiction",
        "COPA.jsonl": "1",
        MULTIRC: "0",
        "ReCoRD.jsonl": "unknown",
        "WiC.jsonl": "false",
        "WSC.jsonl": "False",
        "RTE.jsonl": "entailment",
        "AX-b.jsonl": "entailment",
        "AX-g.jsonl": "entailment",
    },
}
CHECKED_BY = {"glue": "rte", "superglue": "boolq"}  # one of our tasks, any of which checks the archive
EXAMPLES = """\
  python -m dept_vl.pack --benchmark glue --runs runs/cola runs/rte runs/mnli --output glue.zip
  python -m dept_vl.pack --benchmark superglue --runs runs/boolq runs/multirc --output superglue.zip"""


def main(arguments: list[str]) -> None:
    """Write the archive, and say what is in it."""
    parser = Parser(
        "dept_vl.pack",
        "Pack the test files of evaluated runs for the server of GLUE or SuperGLUE, which takes those of all tasks or "
        "none: tasks without a run get placeholders.",
        EXAMPLES,
    )
    parser.add_argument("--benchmark", required=True, choices=PLACEHOLDERS, help="whose server it is for")
    parser.add_argument(
        "--runs",
        required=True,
        nargs="+",
        type=Path,
        metavar="RUN",
        help=f"folders that dept_vl.train wrote, after dept_vl.evaluate --split {OFFICIAL_TEST} (MNLI's other half: "
        f"{OFFICIAL_TEST}-mm)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the archive to write, such as x.zip"
    )
    parser.add_argument(
        "--multirc-questions",
        type=Path,
        metavar="FILE",
        help="MultiRC's official test.jsonl, whose ids a placeholder for it needs",
    )
    options = parser.parse_args(arguments)
    pack(options.benchmark, options.runs, options.output, multirc_questions=options.multirc_questions)


def pack(benchmark: str, runs: Sequence[Path], output: Path, *, multirc_questions: Path | None = None) -> None:
    """Write the archive, and beside it a JSON file that says where each of its files is from.

    Raises:
        InputDataError: a run has no test file, or the server would refuse the archive; nothing is written.
        UsageError: two runs have the same file, or a placeholder cannot be made.
    """
    from dept_vl.formats.submission import zip_content

    if output.suffix != ".zip":
        raise UsageError(f"--output is {output}, but the server takes a zip archive. Give a name that ends in .zip")
    labels = PLACEHOLDERS[benchmark]
    files = test_files(runs, list(labels))
    with TemporaryDirectory() as folder:
        missing = {name: label for name, label in labels.items() if name not in files}
        contents = {name: path.read_bytes() for name, path in files.items()}
        contents |= _placeholders(Path(folder), missing, multirc_questions)
        archive = zip_content({name: contents[name] for name in labels})
        _check(Path(folder) / output.name, archive, benchmark, files)
    record = {
        name: {
            **({"placeholder": missing[name]} if name in missing else {"file": str(files[name])}),
            "sha256": hashlib.sha256(contents[name]).hexdigest(),
        }
        for name in labels
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durably(output.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    write_durably(output, archive)
    for name in labels:
        say(f"{name:14} {f'placeholder: {missing[name]}' if name in missing else files[name]}")
    say(f"Wrote {output}" + (f". {len(missing)} of its {len(labels)} files are placeholders" if missing else ""))


def test_files(runs: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """The test files with these names in the evaluations of the runs.

    Raises:
        InputDataError: a run has none of them.
        UsageError: there are two of a name.
    """
    files: dict[str, Path] = {}
    for folder in runs:
        if not folder.is_dir():
            raise InputDataError(f"{folder} is no folder. Give one that dept_vl.train wrote")
        found = [
            path
            for path in sorted(folder.glob("evaluation/**/*"))
            if path.name in names and path.parent.name.startswith(OFFICIAL_TEST)
        ]
        if not found:
            raise InputDataError(
                f"{folder} has no test file of this benchmark ({', '.join(names)}). Make it: python -m "
                f"dept_vl.evaluate --run {folder} --split {OFFICIAL_TEST}"
            )
        for path in found:
            if path.name in files:
                raise UsageError(f"{path.name} is both {files[path.name]} and {path}. Give one of these runs")
            files[path.name] = path
    return files


def _placeholders(folder: Path, labels: Mapping[str, str], multirc_questions: Path | None) -> dict[str, bytes]:
    """Files of the right length that have one answer throughout."""
    from dept_vl.formats.submission.label_jsonl import write_label_jsonl
    from dept_vl.formats.submission.label_tsv import write_label_tsv
    from dept_vl.tasks import glue, superglue
    from dept_vl.types import Prediction

    for name, label in labels.items():
        if name in glue.SERVER_FILES:
            count = glue.SERVER_FILES[name].rows
            write_label_tsv(folder / name, [Prediction(str(index), label) for index in range(count)])
        else:
            form, count = superglue.SERVER_FILES[name]
            ids = _multirc_ids(multirc_questions) if name == MULTIRC else [str(index) for index in range(count)]
            write_label_jsonl(folder / name, form, [Prediction(one, label) for one in ids])
    return {name: (folder / name).read_bytes() for name in labels}


def _multirc_ids(questions: Path | None) -> list[str]:
    from dept_vl.config import load_settings
    from dept_vl.tasks.task import OfficialFiles, load_task

    if questions is None:
        raise UsageError(
            f"No run has {MULTIRC}, and a placeholder needs the ids of its test set. Give a run of multirc, or its "
            "official test.jsonl as --multirc-questions FILE"
        )
    task = load_task(load_settings({"task": "multirc"}, []).task)
    return [example.example_id for example in task.read_files(OfficialFiles(questions))]


def _check(path: Path, archive: bytes, benchmark: str, files: Mapping[str, Path]) -> None:
    """Refuse an archive that the server would.

    Raises:
        InputDataError: names every fault with the file that has it.
    """
    from dept_vl.config import load_settings
    from dept_vl.tasks.task import load_task

    path.write_bytes(archive)
    task = load_task(load_settings({"task": CHECKED_BY[benchmark]}, []).task)
    faults = []
    for fault in task.check_submission(path, None):
        name, _, rest = fault.partition(": ")
        faults.append(f"{files[name]}: {rest}" if name in files else fault)
    if faults:
        raise InputDataError(
            f"The server would refuse the archive: {'; '.join(faults)}. Evaluate the whole official test of each run, "
            "and pack again"
        )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
