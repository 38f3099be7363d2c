"""Visual Genome's questions, question_answers.json, as further ones to train on."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from sys import intern
from typing import Any

from dept_vl.formats.files import KINDS, Faults, check_types, collector_paused, read_json, refuse
from dept_vl.metrics.vqa_accuracy import normalise
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

VISUAL_GENOME = "vg"  # what its example ids begin with: a number alone could be a question id of VQA
VISUAL_GENOME_FILE = "question_answers.json"


@collector_paused()
def read_visual_genome(path: Path) -> list[Example]:
    """Visual Genome's questions to train on; one answer each is no reference to score by.

    Raises:
        InputDataError: there is no such file, or it is in another layout; all faults are named together.
    """
    images = read_json(path)
    if not isinstance(images, list) or not images:
        raise InputDataError(
            f"{path} holds {KINDS[type(images)]} without images. Visual Genome's file is "
            '[{"id": 1, "qas": [{"qa_id": 2, "image_id": 1, "question": ..., "answer": ...}, ...]}, ...]'
        )
    faults: Faults = defaultdict(list)
    examples: dict[str, Example] = {}
    wanted = {"qa_id": int, "image_id": int, "question": str, "answer": str}
    for index, image in enumerate(images):
        if check_types(image, {"id": int, "qas": list}, f"image {index}", faults):
            for row in image["qas"]:
                if check_types(row, wanted, f"image {image['id']}", faults):
                    example = _example(row)
                    if example.example_id in examples:
                        faults["duplicate qa_id"].append(row["qa_id"])
                    if row["image_id"] != image["id"]:
                        faults["questions whose image_id is not their image's"].append(row["qa_id"])
                    examples[example.example_id] = example
    refuse(faults, path)
    return list(examples.values())


def _example(row: dict[str, Any]) -> Example:
    answer = normalise(row["answer"])  # its answers are sentences: "Green."
    return Example(
        example_id=f"{VISUAL_GENOME}{row['qa_id']}",
        text=row["question"],
        image_ids=(str(row["image_id"]),),
        targets=(Target(intern(answer), 1.0),) if answer else (),
    )
