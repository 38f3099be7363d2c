"""A sentence that describes an image, in the file formats of COCO's captions and of Karpathy's split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dept_vl.formats.files import Faults, check_types, collector_paused, read_json, refuse
from dept_vl.formats.karpathy import find_karpathy, read_karpathy
from dept_vl.formats.submission import (
    JsonList,
    check_json_list,
    check_name,
    check_zip,
    json_list_faults,
    read_json_list,
    write_json_list,
    zip_content,
)
from dept_vl.formats.submission.content import template_of
from dept_vl.metrics.caption import FIGURES, caption_scores
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

KARPATHY = "karpathy_"  # begins the names of his splits: karpathy_train, karpathy_val, karpathy_test
SERVER_SPLITS = ("val2014", "test2014")  # which the server takes together
PERFECT_CIDER = 10
OFFICIAL_LISTS = {
    "images": '"images": [{"id": 42, "file_name": ...}, ...]',
    "annotations": '"annotations": [{"id": 1, "image_id": 42, "caption": ...}, ...]',
}
RESULTS = JsonList(
    id_key="image_id",
    id_type=int,
    answer_key="caption",
    example='[{"image_id": 42, "caption": "a red bus on a street"}, ...]',
    whole="The server wants one caption of every image of the split",
)

Row = dict[str, Any]


def build(settings: TaskSettings) -> Task:
    """The task for data whose files carry the settings' split names, or are Karpathy's."""
    return Task(
        name=settings.name,
        read=partial(read, splits=settings.splits),
        read_files=read_files,
        parse=parse,
        score=score,
        submit=submit,
        read_submission=partial(read_json_list, rows=RESULTS),
        check_submission=partial(check_submission, splits=settings.splits),
        submission_name=partial(submission_name, splits=settings.splits),
        graded=True,
        score_validation=partial(score, java=False),
        server_splits=partial(server_splits, splits=settings.splits),
        bundle=bundle,
    )


@collector_paused()
def read(folder: Path, split: str, *, splits: Mapping[str, str]) -> list[Example]:
    """The images of one split, with their captions unless it is a test split without published ones.

    A split's name may join several sources by "+". A source is one of Karpathy's splits, or else the NAME of official
    captions_NAME.json or, without captions, image_info_NAME.json, in the folder or in annotations/ in it.

    Raises:
        InputDataError: files are missing or wrong, or sources share images; the faults of all files are named together.
    """
    sources = split_name(splits, split).split("+")
    examples: list[Example] = []
    wrong: list[str] = []
    for source in sources:
        try:
            examples += _source(folder, source, split)
        except InputDataError as error:
            wrong.append(str(error))
    if wrong:
        raise InputDataError("; ".join(wrong))
    faults: Faults = defaultdict(list)
    faults[f"images that are in more than one of {', '.join(sources)}"] = _repeated(one.example_id for one in examples)
    refuse(faults, folder)
    return examples


@collector_paused()
def read_files(files: OfficialFiles) -> list[Example]:
    """The images of an official captions_NAME.json.

    Raises:
        InputDataError: there is no such file, or it is none; all faults are named together.
    """
    return _official(files.annotations, captioned=True)


def parse(text: str) -> str:
    """The caption on one line, with single spaces."""
    return " ".join(text.split())


def score(predictions: Sequence[Prediction], examples: Sequence[Example], *, java: bool = True) -> Scores:
    """The official scores times 100, unrounded; None, but for the count, where no captions are published.

    An image's own score is its CIDEr as a share of a perfect one. Without ``java``, METEOR and SPICE are left out.
    """
    answers = dict(predictions)
    references = {one.example_id: one.references for one in examples if one.references}
    if not references:
        return Scores({**dict.fromkeys(FIGURES), "n": len(examples)}, {})
    found = caption_scores({one: answers[one] for one in references}, references, java=java)
    return Scores(
        metrics={**found.metrics, "n": len(examples)},
        per_example={image: min(max(cider / PERFECT_CIDER, 0.0), 1.0) for image, cider in found.cider.items()},
        reasons=found.reasons,
    )


def submit(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the results file that the server and the official script take: one row for each image."""
    write_json_list(path, RESULTS, predictions)


@collector_paused()
def check_submission(path: Path, questions: Path | None, *, splits: Mapping[str, str]) -> list[str]:
    """What the server would refuse or count as wrong, of the archive with both splits or of the file of one.

    ``questions`` is the split's captions_NAME.json or image_info_NAME.json, or a folder with them; an archive needs
    the folder.

    Raises:
        InputDataError: there is no such file, or the images' file is none.
    """
    if path.suffix == ".zip":
        if questions is not None and not questions.is_dir():
            raise InputDataError(
                f"{questions} is one file, but {path.name} holds the captions of {' and '.join(SERVER_SPLITS)}. "
                "Give the folder with captions_val2014.json and image_info_test2014.json"
            )
        wanted = {one: _image_numbers(questions, one) for one in SERVER_SPLITS}
        return check_zip(
            path, {_template(one): partial(json_list_faults, rows=RESULTS, wanted=wanted[one]) for one in SERVER_SPLITS}
        )
    names = {_template(name): name for name in (*SERVER_SPLITS, *splits.values())}
    named = template_of(path.name, names)
    split = names[named.template] if named else ""
    return [*check_name(path, list(names)), *check_json_list(path, RESULTS, _image_numbers(questions, split))]


def submission_name(split: str, *, splits: Mapping[str, str]) -> str:
    """The results file's official name, as in captions_val2014_dept_results.json."""
    return _template(split_name(splits, split)).replace("<alg>", "dept")


def server_splits(split: str, *, splits: Mapping[str, str]) -> tuple[str, ...]:
    """The splits whose files the server takes together with this one's."""
    ours = {name: one for one, name in splits.items()}
    together = tuple(ours[name] for name in SERVER_SPLITS if name in ours)
    return together if split in together else (split,)


def bundle(files: Mapping[str, Path], path: Path) -> None:
    """Pack the files of all splits into the archive to upload: the same bytes for the same files, at any time."""
    contents = {file.name: file.read_bytes() for file in files.values()}
    write_durably(path, zip_content(dict(sorted(contents.items()))))


def _template(name: str) -> str:
    return f"captions_{name}_<alg>_results.json"


def _source(folder: Path, source: str, split: str) -> list[Example]:
    if source.startswith(KARPATHY):
        return _karpathy(find_karpathy(folder), source, split)
    for captioned, name in ((True, f"captions_{source}.json"), (False, f"image_info_{source}.json")):
        for path in (folder / name, folder / "annotations" / name):
            if path.is_file():
                return _official(path, captioned=captioned)
    there = ", ".join(sorted(path.name for path in folder.glob("*.json")))
    raise InputDataError(
        f"{folder} has no captions_{source}.json and no image_info_{source}.json. JSON files there: {there or 'none'}. "
        f"Put the official file there, or set task.splits.{split} to the name in yours"
    )


def _karpathy(path: Path, source: str, split: str) -> list[Example]:
    images = read_karpathy(path)
    chosen = [image for image in images if KARPATHY + image.split == source]
    if not chosen:
        names = ", ".join(sorted({KARPATHY + image.split for image in images}))
        raise InputDataError(
            f"{path} has no images of {source}. It has: {names}. Set task.splits.{split} to one of them"
        )
    faults: Faults = defaultdict(list)
    if any(image.captions for image in chosen):
        faults["images without captions"] = [image.number for image in chosen if not image.captions]
    refuse(faults, path)
    return [_example(image.number, image.image_id, image.captions) for image in chosen]


def _official(path: Path, *, captioned: bool) -> list[Example]:
    content = read_json(path)
    keys = ("images", "annotations") if captioned else ("images",)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) and content[key] for key in keys):
        raise InputDataError(
            f"{path} has no list of {' or none of '.join(keys)}. An official file is "
            f"{{{', '.join(OFFICIAL_LISTS[key] for key in keys)}, ...}}. Check that it is whole, and one of captions"
        )
    faults: Faults = defaultdict(list)
    images = _sound(content["images"], {"id": int, "file_name": str}, "image", faults)
    faults["duplicate image ids"] = _repeated(row["id"] for row in images)
    faults["duplicate file names"] = _repeated(row["file_name"] for row in images)
    captions: dict[int, list[str]] = {row["id"]: [] for row in images}
    if captioned:
        rows = _sound(content["annotations"], {"id": int, "image_id": int, "caption": str}, "annotation", faults)
        faults["duplicate annotation ids"] = _repeated(row["id"] for row in rows)
        for row in rows:
            if row["image_id"] in captions:
                captions[row["image_id"]].append(row["caption"])
            else:
                faults["captions of images that are not in the file"].append(row["id"])
        faults["images without captions"] = [number for number, found in captions.items() if not found]
    refuse(faults, path)
    return [_example(str(row["id"]), Path(row["file_name"]).stem, captions[row["id"]]) for row in images]


def _example(number: str, image_id: str, captions: Iterable[str]) -> Example:
    references = tuple(captions)
    return Example(
        example_id=number,
        text="",  # the prefix is all that the model is told
        image_ids=(image_id,),
        references=references,
        targets=tuple(Target(text, 1.0) for text in map(parse, references) if text),
    )


def _image_numbers(questions: Path | None, split: str) -> list[str] | None:
    """The images that a split's file must have, if they are known; of a folder, the split says which."""
    if questions is None or (questions.is_dir() and not split):
        return None
    if questions.is_dir():
        examples = [example for source in split.split("+") for example in _source(questions, source, split)]
    elif split.startswith(KARPATHY):
        examples = _karpathy(questions, split, split)
    else:
        examples = _official(questions, captioned=False)
    return [example.example_id for example in examples]


def _sound(rows: Sequence[Any], wanted: Mapping[str, type], kind: str, faults: Faults) -> list[Row]:
    return [row for index, row in enumerate(rows) if check_types(row, wanted, f"{kind} {index}", faults)]


def _repeated(ids: Iterable[object]) -> list[object]:
    return [one for one, count in Counter(ids).items() if count > 1]
