"""Karpathy's split of COCO (dataset_coco.json), and other data sets in the same layout, such as Flickr8k."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.formats.files import Faults, check_types, collector_paused, read_json, refuse
from feature_extraction.errors import InputDataError

KARPATHY_FILE = "dataset_coco.json"
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}  # in the file: what it is used as


class KarpathyImage(NamedTuple):
    """One image, and the captions people wrote for it."""

    image_id: str  # file name without suffix
    number: str  # the data set's own number of the image: COCO's, or the file's where there is none
    split: str  # train, val or test
    captions: tuple[str, ...]  # as written


def find_karpathy(folder: Path) -> Path:
    """The file of a data folder in Karpathy's layout: dataset_coco.json, or else the only dataset*.json.

    Raises:
        InputDataError: there is no such file, or more than one to choose from.
    """
    if (folder / KARPATHY_FILE).is_file():
        return folder / KARPATHY_FILE
    found = sorted(folder.glob("dataset*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputDataError(
            f"{folder} has no {KARPATHY_FILE}, and of other files dataset*.json exactly one is needed: {names}. "
            f"Put Karpathy's {KARPATHY_FILE} there (from caption_datasets.zip), or take away the files not meant"
        )
    return found[0]


@collector_paused()
def read_karpathy(path: Path) -> list[KarpathyImage]:
    """The images in the order of the file; those of restval are images to train on.

    Raises:
        InputDataError: the file is missing or in another layout; all faults are named together.
    """
    content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputDataError(
            f'{path} has no list of images. A file in Karpathy\'s layout is {{"images": [{{"filename": ..., '
            '"split": ..., "sentences": [{"raw": ...}, ...]}, ...]}. Check that it is the right file'
        )
    faults: Faults = defaultdict(list)
    images = [_image(row) for index, row in enumerate(rows) if _is_sound(row, f"image {index}", faults)]
    faults["duplicate image numbers"] = _duplicates([image.number for image in images])
    faults["duplicate file names"] = _duplicates([image.image_id for image in images])
    refuse(faults, path)
    return images


def _image(row: Mapping[str, Any]) -> KarpathyImage:
    return KarpathyImage(
        image_id=Path(row["filename"]).stem,
        number=str(row[_number_key(row)]),
        split=SPLITS[row["split"]],
        captions=tuple(sentence["raw"] for sentence in row["sentences"]),
    )


def _is_sound(row: Any, place: str, faults: Faults) -> bool:  # noqa: ANN401 - from JSON
    """Whether one image's entry is in the layout; what is wrong with it is added to ``faults``."""
    wanted = {"filename": str, _number_key(row): int, "split": str, "sentences": list}
    if not check_types(row, wanted, place, faults):
        return False
    known_split = row["split"] in SPLITS
    if not known_split:
        faults[f'"split" is none of {", ".join(SPLITS)}'].append(f"{row['split']!r} of {place}")
    sentences = [check_types(one, {"raw": str}, f"a sentence of {place}", faults) for one in row["sentences"]]
    return known_split and all(sentences)


def _number_key(row: Any) -> str:  # noqa: ANN401 - from JSON
    return "cocoid" if isinstance(row, dict) and "cocoid" in row else "imgid"


def _duplicates(names: list[str]) -> list[object]:
    return [name for name, count in Counter(names).items() if count > 1]
