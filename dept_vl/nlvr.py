"""NLVR (v1), human sentences on drawn scenes of three boxes, as data in NLVR2's file format with an image a box.

python -m dept_vl.nlvr --input DIR --output DIR

DIR has SPLIT/SPLIT.jsonl (identifier, sentence, label, image) and SPLIT/images/ for the labelled splits dev, hidden and
test of https://github.com/lil-lab/nlvr (Suhr et al. 2017, CC-BY-4.0).

This is not the official protocol: the large official training split is not among them. Official dev and hidden are for
training and validation, official test for the test. The splits differ in their sentences: training rows whose sentence
is in test are left out, and of the other sentences every tenth is for validation with all its scenes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from dept_vl.command_line import Parser, run, say
from feature_extraction.durable import PARTIAL_SUFFIX, commit_directory, write_durably
from feature_extraction.errors import InputDataError

SPLITS = {"train": "train", "validation": "dev", "test": "test1"}  # our name: the name of the file, as NLVR2's
TRAINING, TEST = ("dev", "hidden"), "test"  # official splits
HELD_OUT = 10  # every tenth training sentence is for validation
IMAGE_SIZE = (400, 100)  # pixels: three boxes of 100 x 100 and two bars of 50 between them
BOXES = ((0, 0, 100, 100), (150, 0, 250, 100), (300, 0, 400, 100))  # left, upper, right, lower; pixels

Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    """Convert the data set unless it is there, and say what is in it."""
    parser = Parser(
        "dept_vl.nlvr",
        "Write the NLVR data set (v1) as a folder in NLVR2's file format, with three images a sentence.",
        "  python -m dept_vl.nlvr --input nlvr --output data/nlvr",
    )
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with SPLIT/SPLIT.jsonl (identifier, sentence, label, image) and SPLIT/images/",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options = parser.parse_args(arguments)
    if convert(options.input, options.output):
        say(f"Wrote {options.output}")
    else:
        say(f"{options.output} is there already; nothing to do")
    for line in summary(options.output):
        say(line)


def convert(source: Path, output: Path) -> bool:
    """Write the crops and the records of each split to ``output``, in one step; False if they are there already.

    Raises:
        InputDataError: ``output`` holds something else, or ``source`` is not whole; all faults of a file are named
            together.
    """
    if (output / "images").is_dir() and all((output / f"{name}.json").is_file() for name in SPLITS.values()):
        return False
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputDataError(f"{output} holds something else than this data set. Give a new folder, or remove that one")
    splits = _splits(_rows(source))
    partial = output.with_name(output.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)  # left by a stopped conversion
    (partial / "images").mkdir(parents=True)
    for name, rows in splits.items():
        for row in rows:
            for image_id, crop in zip(_image_ids(row), _crops(row["path"]), strict=True):
                write_durably(partial / "images" / f"{image_id}.png", crop)
        lines = [json.dumps(_record(row)) + "\n" for row in rows]
        write_durably(partial / f"{name}.json", "".join(lines).encode())
    commit_directory(partial, output)
    return True


def summary(folder: Path) -> Iterator[str]:
    """For each split its size, and the scores of always giving the most frequent training label."""
    from dept_vl.tasks.nlvr2 import read, score
    from dept_vl.tasks.vqa import majority_answer
    from dept_vl.types import Prediction

    examples = {split: read(folder, split, splits=SPLITS) for split in SPLITS}
    label = majority_answer(examples["train"])
    for split, members in examples.items():
        metrics = score([Prediction(example.example_id, label) for example in members], members).metrics
        sentences = len({sentence_key(example.text) for example in members})
        yield (
            f'{split:10} {len(members):6,} scenes  {sentences:5,} sentences  always "{label}": '
            f"accuracy {metrics['accuracy']:.2f} %, consistency {metrics['consistency']:.2f} %"
        )


def sentence_key(sentence: str) -> str:
    """The sentence without what leaves it the same one: capitals, outer and double spaces, the final period."""
    return " ".join(sentence.lower().split()).rstrip(" .")


def _rows(source: Path) -> dict[str, list[Row]]:
    """The rows of each official split, with the path of their image.

    Raises:
        InputDataError: files are missing, or rows are no such rows.
    """
    from dept_vl.formats.files import Faults, check_types, refuse
    from dept_vl.tasks.nlvr2 import read_records

    files = {split: source / split / f"{split}.jsonl" for split in (*TRAINING, TEST)}
    missing = [str(path.relative_to(source)) for path in files.values() if not path.is_file()]
    if missing:
        raise InputDataError(
            f"{source} has no {' and no '.join(missing)}. Give the folder that has SPLIT/SPLIT.jsonl and SPLIT/images/ "
            "for dev, hidden and test"
        )
    found: dict[str, list[Row]] = {}
    for split, path in files.items():
        faults: Faults = defaultdict(list)
        wanted = dict.fromkeys(("identifier", "sentence", "label", "image"), str)
        rows = [row for place, row in read_records(path).items() if check_types(row, wanted, place, faults)]
        seen: set[str] = set()
        for row in rows:
            identifier = row["identifier"]
            row["split"], row["path"] = split, path.parent / "images" / row["image"]
            if identifier in seen:
                faults["duplicate identifier"].append(identifier)
            seen.add(identifier)
            if not re.fullmatch(r"\d+-\d+", identifier):
                faults['"identifier" is not sentence-scene, as in 1572-0'].append(identifier)
            if row["label"] not in ("true", "false"):
                faults['"label" is neither "true" nor "false"'].append(identifier)
            if not row["path"].is_file():
                faults[f"no such image in {path.parent / 'images'}"].append(row["image"])
        refuse(faults, path)
        found[split] = rows
    return found


def _splits(official: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows of each file to write."""
    tested = {sentence_key(row["sentence"]) for row in official[TEST]}
    rows = [row for split in TRAINING for row in official[split] if sentence_key(row["sentence"]) not in tested]
    sentences = dict.fromkeys(sentence_key(row["sentence"]) for row in rows)  # in the order of their first scenes
    held_out = set(list(sentences)[::HELD_OUT])
    return {
        "train": [row for row in rows if sentence_key(row["sentence"]) not in held_out],
        "dev": [row for row in rows if sentence_key(row["sentence"]) in held_out],
        "test1": official[TEST],
    }


def _record(row: Row) -> Row:
    return {
        "identifier": f"{row['split']}-{row['identifier']}-0",  # split-set-pair-sentence; a set has one sentence
        "sentence": row["sentence"],
        "label": row["label"].capitalize(),
        "images": _image_ids(row),
    }


def _image_ids(row: Row) -> list[str]:
    return [f"nlvr-{row['split']}-{row['identifier']}-{box}" for box in range(len(BOXES))]


def _crops(path: Path) -> Sequence[bytes]:
    """The boxes of a scene as PNG files, from left to right.

    Raises:
        InputDataError: it is no image of a scene.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            scene = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputDataError(f"{path} cannot be read as an image: {error}. Copy it again") from error
    if scene.size != IMAGE_SIZE:
        raise InputDataError(
            f"{path} has {scene.width} x {scene.height} pixels; a scene has {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}. "
            "Give NLVR's own images"
        )
    files = [BytesIO() for _ in BOXES]
    for file, box in zip(files, BOXES, strict=True):
        scene.crop(box).save(file, format="PNG")
    return [file.getvalue() for file in files]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
