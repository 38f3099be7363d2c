"""easy-VQA, the data of the demo, from its PyPI package into the official file formats of VQAv2.

python -m dept_vl.easy_vqa --output DIR
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dept_vl.command_line import Parser, run, say
from feature_extraction.durable import PARTIAL_SUFFIX, commit_directory, write_durably
from feature_extraction.errors import InputDataError, UsageError

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # our name: the name in the file names
HELD_OUT = 10  # every tenth training image is for validation: 400 of 4,000; the images were drawn independently
ANNOTATORS = 10
HEAD = {
    "info": {
        "description": "easy-VQA in the format of VQAv2; the one answer stands for ten annotators",
        "url": "https://github.com/vzhou842/easy-VQA",
        "version": "1.0",
    },
    "license": {"name": "MIT", "url": "https://github.com/vzhou842/easy-VQA/blob/master/LICENSE"},
    "data_type": "easy_vqa",
}


def main(arguments: list[str]) -> None:
    """Convert the data set unless it is there, and say what is in it."""
    parser = Parser(
        "dept_vl.easy_vqa",
        "Write the easy-VQA data set (PyPI package easy-vqa) as a folder in VQAv2's file formats.",
        "  python -m dept_vl.easy_vqa --output data/easy_vqa",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options = parser.parse_args(arguments)
    if convert(options.output):
        say(f"Wrote {options.output}")
    else:
        say(f"{options.output} is there already; nothing to do")
    for line in summary(options.output):
        say(line)


def convert(output: Path) -> bool:
    """Write images, questions and annotations to ``output``, in one step; False if they are there already.

    Raises:
        InputDataError: ``output`` holds something else.
        UsageError: the package easy-vqa is not installed.
    """
    if all((output / name).is_file() for subtype in SPLITS.values() for name in file_names(subtype)):
        return False
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputDataError(f"{output} holds something else than this data set. Give a new folder, or remove that one")
    try:
        import easy_vqa
    except ImportError:
        raise UsageError('The package easy-vqa is not installed. Run: pip install "dept_vl[demo]"') from None

    partial = output.with_name(output.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)  # left by a stopped conversion
    (partial / "images").mkdir(parents=True)
    packaged = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    questions: dict[str, list[dict[str, Any]]] = {subtype: [] for subtype in SPLITS.values()}
    annotations: dict[str, list[dict[str, Any]]] = {subtype: [] for subtype in SPLITS.values()}
    question_id = 0  # counts through train, val and test, in the package's order
    for part, ((texts, answers, image_ids), paths) in packaged.items():
        for image_id, path in sorted(paths.items()):
            name = f"easy_vqa_{_subtype(part, image_id)}_{image_id:012d}.png"
            write_durably(partial / "images" / name, Path(path).read_bytes())
        for text, answer, image_id in zip(texts, answers, image_ids, strict=True):
            question_id += 1
            ids = {"question_id": question_id, "image_id": image_id}
            questions[_subtype(part, image_id)].append({**ids, "question": text})
            annotations[_subtype(part, image_id)].append({**ids, **_annotation(text, answer)})
    for subtype in SPLITS.values():
        head = {**HEAD, "data_subtype": subtype}
        questions_name, annotations_name = file_names(subtype)
        _write_json(partial / questions_name, {**head, "task_type": "Open-Ended", "questions": questions[subtype]})
        _write_json(partial / annotations_name, {**head, "annotations": annotations[subtype]})
    commit_directory(partial, output)
    return True


def summary(folder: Path) -> Iterator[str]:
    """For each split its size, and the accuracy of always giving the most frequent training answer."""
    from dept_vl.tasks.vqa import majority_answer, read, score
    from dept_vl.types import Prediction

    examples = {split: read(folder, split, splits=SPLITS) for split in SPLITS}
    answer = majority_answer(examples["train"])
    for split, members in examples.items():
        accuracy = score([Prediction(example.example_id, answer) for example in members], members).metrics["accuracy"]
        images = len({image_id for example in members for image_id in example.image_ids})
        yield f'{split:10} {len(members):6,} questions  {images:5,} images  always "{answer}": {accuracy} %'


def file_names(subtype: str) -> tuple[str, str]:
    """The official names of a split's questions and annotations."""
    return f"v2_OpenEnded_easy_vqa_{subtype}_questions.json", f"v2_easy_vqa_{subtype}_annotations.json"


def _subtype(part: str, image_id: int) -> str:
    return "val" if part == "train" and image_id % HELD_OUT == 0 else part


def _annotation(text: str, answer: str) -> dict[str, Any]:
    return {
        "question_type": " ".join(text.split()[:2]),
        "answer_type": "yes/no" if answer in ("yes", "no") else "other",
        "multiple_choice_answer": answer,
        "answers": [
            {"answer_id": number, "answer": answer, "answer_confidence": "yes"} for number in range(1, ANNOTATORS + 1)
        ],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_durably(path, json.dumps(content, separators=(",", ":")).encode())


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
