"""Where the questions of a split come from, and finding the files in a data folder.

Official pairs of files; the parts of train2014 and val2014 that Karpathy's split makes; Visual Genome; lists of LXMERT
and VL-T5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from dept_vl.formats.files import Faults, collector_paused, refuse, refuse_repeated
from dept_vl.formats.karpathy import KARPATHY_FILE, read_karpathy
from dept_vl.formats.lxmert import read_lxmert
from dept_vl.formats.visual_genome import VISUAL_GENOME, VISUAL_GENOME_FILE, read_visual_genome
from dept_vl.formats.vqa_files import Annotation, read_annotations, read_official, read_questions
from dept_vl.types import Example
from feature_extraction.errors import InputDataError

QUESTIONS = "*OpenEnded_*_{}_questions.json"  # with the split's official name
ANNOTATIONS = "*_{}_annotations.json"
HALVES = ("train2014", "val2014")
KARPATHY = {  # source: the images' split, and the official files that their questions are in
    "karpathy_train": ("train", HALVES),
    "karpathy_val": ("val", HALVES[1:]),
    "karpathy_test": ("test", HALVES[1:]),
}


class Pair(NamedTuple):
    """The official files of one split; no annotations where they are withheld."""

    annotations: Path | None
    questions: Path


@collector_paused()
def read_sources(folder: Path, sources: Sequence[str], *, withheld: bool) -> list[Example]:
    """The examples of one source after the other.

    A source is, in this order: the name in the names of an official pair of files, whose annotations may lack if they
    are ``withheld``; a part of Karpathy's split, made of the official pairs by dataset_coco.json; "vg"; or the
    NAME of a list NAME.json of LXMERT or VL-T5.

    Raises:
        InputDataError: files are missing, all of which are named together; or what they hold does not fit.
    """
    if not folder.is_dir():
        raise InputDataError(f"No folder {folder}. Give the folder with the official question and annotation files")
    missing: dict[str, None] = {}  # in order, each once
    official = cache(read_official)  # Karpathy's parts share their pairs
    readers = [_reader(folder, source, withheld or source.startswith("test"), missing, official) for source in sources]
    _refuse_missing(missing, folder, " + ".join(sources))
    examples = list(chain.from_iterable(read() for read in readers))
    refuse_repeated(examples, "questions of more than one source", f"{folder}, {' + '.join(sources)}")
    return examples


def whole_test(folder: Path, part: str) -> list[str]:
    """The ids of all test questions, those of test2015, by the name of a part of them, test-dev2015.

    Raises:
        InputDataError: their file is missing.
    """
    missing: dict[str, None] = {}
    path = _only_file(folder, QUESTIONS.format(part.replace("test-dev", "test")), missing)
    _refuse_missing(missing, folder, f"a complete file of {part}")
    return [str(one) for one in read_questions(path).rows]


def _reader(
    folder: Path, source: str, withheld: bool, missing: dict[str, None], official: Callable[..., list[Example]]
) -> Callable[[], Iterable[Example]]:
    """What reads a source; what it lacks is added to ``missing``."""
    listed, karpathy, genome = folder / f"{source}.json", folder / KARPATHY_FILE, folder / VISUAL_GENOME_FILE
    if list(folder.glob(QUESTIONS.format(source))):
        return partial(official, *_pair(folder, source, withheld, missing))
    if source in KARPATHY and (karpathy.is_file() or not listed.is_file()):
        if not karpathy.is_file():
            missing[f"{karpathy.name} of Karpathy (or {listed.name} of VL-T5)"] = None
        part, halves = KARPATHY[source]
        return partial(_karpathy, karpathy, part, [_pair(folder, half, False, missing) for half in halves], official)
    if source == VISUAL_GENOME and (genome.is_file() or not listed.is_file()):
        if not genome.is_file():
            missing[f"{genome.name} of Visual Genome"] = None
        return partial(read_visual_genome, genome)
    if listed.is_file():
        return partial(_lxmert, listed)
    return partial(official, *_pair(folder, source, withheld, missing))


def _pair(folder: Path, subtype: str, withheld: bool, missing: dict[str, None]) -> Pair:
    """The files of one official split."""
    questions = _only_file(folder, QUESTIONS.format(subtype), missing)
    if withheld and not list(folder.glob(ANNOTATIONS.format(subtype))):
        return Pair(None, questions)
    return Pair(_only_file(folder, ANNOTATIONS.format(subtype), missing), questions)


def _only_file(folder: Path, pattern: str, missing: dict[str, None]) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        missing[f"exactly one file {pattern} (there are {len(found)})"] = None
    return found[0] if found else folder / pattern


def _refuse_missing(missing: Iterable[str], folder: Path, name: str) -> None:
    """Raise what is missing, if anything is.

    Raises:
        InputDataError: names all of it, and what is there.
    """
    lacking = "; ".join(missing)
    if lacking:
        there = ", ".join(sorted(path.name for path in folder.glob("*.json")))
        raise InputDataError(
            f"For {name}, {folder} needs {lacking}. JSON files there: {there or 'none'}. Put the official files "
            "there, unzipped, or set task.splits to the names in yours"
        )


def _karpathy(path: Path, part: str, pairs: Sequence[Pair], official: Callable[..., list[Example]]) -> list[Example]:
    """The official examples on the images of one part of Karpathy's split, in the order of the official files."""
    parts = {image.image_id: image.split for image in read_karpathy(path)}
    examples = list(chain.from_iterable(official(*pair) for pair in pairs))
    faults: Faults = defaultdict(list)
    faults[f"questions on images that {path.name} does not have"] = [
        one.example_id for one in examples if one.image_ids[0] not in parts
    ]
    refuse(faults, path, *(pair.questions for pair in pairs))
    selected = [one for one in examples if parts[one.image_ids[0]] == part]
    if not selected:
        names = " and ".join(pair.questions.name for pair in pairs)
        raise InputDataError(f"{path} puts no image of {names} into its split {part}. Check that it is COCO's")
    return selected


def _lxmert(path: Path) -> list[Example]:
    """The examples of a list, with the human answers of the official annotations beside it where it has none itself."""
    examples = read_lxmert(path)
    bare = [one for one in examples if not one.references]
    halves = [half for half in HALVES if any(half in one.image_ids[0] for one in bare)]
    found = [sorted(path.parent.glob(ANNOTATIONS.format(half))) for half in halves]
    if not halves or any(len(files) != 1 for files in found):
        return examples
    annotations = {key: one for files in found for key, one in read_annotations(files[0]).items()}
    faults: Faults = defaultdict(list)
    faults["questions without an annotation"] = [
        one.example_id for one in bare if int(one.example_id) not in annotations
    ]
    refuse(faults, path, *(files[0] for files in found))
    return [one if one.references else _annotated(one, annotations[int(one.example_id)]) for one in examples]


def _annotated(example: Example, annotation: Annotation) -> Example:
    return replace(example, references=annotation.references, slices=annotation.slices)
