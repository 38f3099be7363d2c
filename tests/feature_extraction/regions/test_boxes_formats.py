from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_extraction.errors import InputDataError
from feature_extraction.regions.boxes_formats import Boxes, read_boxes

A, B = [[1.5, 2, 30, 40], [5, 6, 7, 8]], [[0, 0, 9, 9]]
COCO = {
    "images": [
        {"id": 7, "file_name": "train2014/COCO_train2014_000000000007.jpg", "width": 64, "height": 48},
        {"id": 9, "file_name": "plain.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "bbox": [1.5, 2, 28.5, 38], "category_id": 3, "iscrowd": 0},
        {"id": 2, "image_id": 7, "bbox": [0, 0, 64, 48], "category_id": 1, "iscrowd": 1},
        {"id": 3, "image_id": 7, "bbox": [5, 6, 2, 2], "category_id": 90},
    ],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "boxes.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def of_image(boxes: Boxes, image_id: str | int) -> list[list[float]]:
    row = boxes.rows[image_id]
    found: list[list[float]] = boxes.boxes[boxes.starts[row] : boxes.starts[row + 1]].tolist()
    return found


def faults(path: Path) -> str:
    """What is said of a file, without what all messages say."""
    with pytest.raises(InputDataError) as caught:
        read_boxes(path)
    start, end = f"The boxes file {path} cannot be used: ", ". Correct the file; docs/features.md shows its formats"
    text = str(caught.value)
    assert text.startswith(start)
    assert text.endswith(end)
    return text.removeprefix(start).removesuffix(end)


# --- formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("boxes.json", {"a": A, "b": B, "c": []}),
        ("boxes.json", {"a": {"boxes": A}, "b": {"boxes": B}, "c": {"boxes": []}}),
        ("boxes.json", {"images": {"a": A, "b": B, "c": []}}),
        ("boxes.json", [{"image_id": "a", "boxes": A}, {"image_id": "b", "boxes": B}, {"image_id": "c", "boxes": []}]),
        (
            "boxes.json",
            {"images": [{"image_id": name, "boxes": boxes} for name, boxes in zip("abc", (A, B, []), strict=True)]},
        ),
        (
            "boxes.jsonl",
            lines({"image_id": "a", "boxes": A}, {"image_id": "b", "boxes": B})
            + "\n"
            + lines({"image_id": "c", "boxes": []}),
        ),
    ],
)
def test_every_format_of_plain_boxes_holds_the_same(write: Callable[..., Path], name: str, content: object) -> None:
    boxes = read_boxes(write(content, name))
    assert [of_image(boxes, image_id) for image_id in "abc"] == [A, B, []]
    assert boxes.starts.tolist() == [0, 2, 3, 3]
    assert (boxes.scores, boxes.class_ids, boxes.units, boxes.detector) == (None, None, "pixels", None)
    assert boxes.sizes.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("name", ["class_ids", "labels"])
def test_scores_classes_and_sizes_are_kept(write: Callable[..., Path], name: str) -> None:
    record = {"image_id": "a", "boxes": A, "scores": [0.5, 1], name: [3, 0], "height": 48, "width": 64}
    nothing = {"image_id": "b", "boxes": [], "scores": [], name: []}
    for path in (write([record, nothing]), write(lines(record, nothing), "boxes.jsonl")):
        boxes = read_boxes(path)
        assert boxes.scores is not None
        assert boxes.class_ids is not None
        assert boxes.scores.tolist() == [0.5, 1.0]
        assert boxes.class_ids.tolist() == [3, 0]
        assert boxes.class_ids.dtype == np.int64
        assert boxes.sizes.tolist() == [[48, 64], [0, 0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("boxes.json", {"units": "fraction", "detector": "mine", "a": [[0, 0, 0.5, 1]]}),
        ("boxes.json", {"units": "fraction", "detector": "mine", "images": {"a": [[0, 0, 0.5, 1]]}}),
        (
            "boxes.json",
            {"units": "fraction", "detector": "mine", "images": [{"image_id": "a", "boxes": [[0, 0, 0.5, 1]]}]},
        ),
        ("boxes.jsonl", lines({"units": "fraction", "detector": "mine"}, {"image_id": "a", "boxes": [[0, 0, 0.5, 1]]})),
    ],
)
def test_units_and_detector_are_told_once(write: Callable[..., Path], name: str, content: object) -> None:
    boxes = read_boxes(write(content, name))
    assert list(boxes.rows) == ["a"]
    assert of_image(boxes, "a") == [[0, 0, 0.5, 1]]
    assert (boxes.units, boxes.detector) == ("fraction", "mine")


def test_images_may_be_called_units_or_detector(write: Callable[..., Path]) -> None:
    boxes = read_boxes(write({"units": A, "detector": B}))
    assert [of_image(boxes, "units"), of_image(boxes, "detector")] == [A, B]
    assert boxes.units == "pixels"


def test_coco_annotations_stand_under_the_names_of_the_images(write: Callable[..., Path]) -> None:
    boxes = read_boxes(write(COCO))
    assert list(boxes.rows) == ["COCO_train2014_000000000007", "plain"]
    assert of_image(boxes, "COCO_train2014_000000000007") == A  # without the crowd
    assert of_image(boxes, "plain") == []
    assert boxes.sizes.tolist() == [[48, 64], [0, 0]]
    assert boxes.class_ids is not None
    assert boxes.class_ids.tolist() == [3, 90]
    assert boxes.scores is None


def test_coco_images_without_names_stand_under_their_numbers(write: Callable[..., Path]) -> None:
    content = {"images": [{"id": 7}], "annotations": [{"image_id": 7, "bbox": [0, 0, 9, 9], "score": 0.25}]}
    boxes = read_boxes(write(content))
    assert of_image(boxes, 7) == B
    assert boxes.scores is not None
    assert boxes.scores.tolist() == [0.25]
    assert boxes.class_ids is None


def test_coco_results_stand_under_the_numbers_of_the_images(write: Callable[..., Path]) -> None:
    rows = [
        {"image_id": 7, "bbox": [1.5, 2, 28.5, 38], "category_id": 3, "score": 0.5},
        {"image_id": 9, "bbox": [0, 0, 9, 9], "category_id": 4, "score": 0.125},
        {"image_id": 7, "bbox": [5, 6, 2, 2], "category_id": 90, "score": 0.75},
    ]
    boxes = read_boxes(write(rows))
    assert [of_image(boxes, 7), of_image(boxes, 9)] == [A, B]
    assert boxes.scores is not None
    assert boxes.class_ids is not None
    assert boxes.scores.tolist() == [0.5, 0.75, 0.125]
    assert boxes.class_ids.tolist() == [3, 90, 4]


def test_many_boxes_become_arrays(write: Callable[..., Path]) -> None:
    row = json.dumps([[1, 2, 30, 40.5]] * 1000)
    content = "".join(f'{{"image_id": "{number}", "boxes": {row}}}\n' for number in range(100))
    boxes = read_boxes(write(content, "boxes.jsonl"))
    assert boxes.boxes.shape == (100_000, 4)
    assert boxes.boxes.flags.owndata


# --- faults


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"image_id": 1.5, "boxes": []}, "image_id is neither text nor a whole number"),
        ({"image_id": True, "boxes": []}, "image_id is neither text nor a whole number"),
        ({"boxes": []}, "image_id is neither text nor a whole number"),
        ({"image_id": "a"}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": {}}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [[1, 2, 3]]}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [[1, 2, 3], [1, 2, 3, 4]]}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [1, 2, 3, 4]}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [[]]}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [["1", "2", "3", "4"]]}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [[1, 2, 3, None]]}, "boxes are no list of lists of 4 numbers"),
        ({"image_id": "a", "boxes": [[1, 2, float("nan"), 4]]}, "a box with a number that is not finite"),
        ({"image_id": "a", "boxes": [[1, 2, float("inf"), 4]]}, "a box with a number that is not finite"),
        ({"image_id": "a", "boxes": [[1, 2, 30, 1.5]]}, "a box that ends before it begins"),
        ({"image_id": "a", "boxes": B, "scores": [0.5, 0.5]}, "scores are not one number for each box"),
        ({"image_id": "a", "boxes": B, "scores": [None]}, "scores are not one number for each box"),
        ({"image_id": "a", "boxes": B, "scores": 0.5}, "scores are not one number for each box"),
        ({"image_id": "a", "boxes": B, "scores": [float("nan")]}, "scores are not one number for each box"),
        ({"image_id": "a", "boxes": B, "labels": ["cat"]}, "class_ids are not one whole number for each box"),
        ({"image_id": "a", "boxes": B, "class_ids": [1.5]}, "class_ids are not one whole number for each box"),
        ({"image_id": "a", "boxes": B, "width": 5}, "height and width are not two whole numbers above 0"),
        ({"image_id": "a", "boxes": B, "width": 5, "height": 0}, "height and width are not two whole numbers above 0"),
        ("a", "no object with image_id and boxes"),
    ],
)
def test_a_faulty_image_is_named_by_its_place(write: Callable[..., Path], entry: object, fault: str) -> None:
    good = {"image_id": "good", "boxes": []}
    assert faults(write([good, entry])) == f"{fault}: 1 (entry 2)"
    assert faults(write(lines(good, entry), "boxes.jsonl")) == f"{fault}: 1 (line 2)"


def test_a_faulty_image_of_an_object_is_named_by_its_id(write: Callable[..., Path]) -> None:
    content = {"a": [[1, 2, 3]], "b": {"boxes": [[3, 3, 2, 4]]}, "c": B}
    assert faults(write(content)) == (
        "boxes are no list of lists of 4 numbers: 1 (image 'a'); a box that ends before it begins: 1 (image 'b')"
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], "no image in it: 1 (the whole file)"),
        ({}, "no image in it: 1 (the whole file)"),
        ({"images": []}, "no image in it: 1 (the whole file)"),
        (5, "neither an object nor a list: 1 (the whole file)"),
        ({"images": "a"}, "neither an object nor a list: 1 (the whole file)"),
        ({"units": "cm", "a": B}, "units is 'cm', not pixels or fraction: 1 (the whole file)"),
        ({"detector": 5, "a": B}, "detector is 5, not a text: 1 (the whole file)"),
        (
            {"units": "fraction", "a": [[0, 0, 0.5, 1]], "b": B},
            'units is "fraction", but there are coordinates far outside 0 to 1, as of pixels: 1 (the whole file)',
        ),
        (
            {"a": [[0, 0, 0.5, 1]]},
            'no coordinate is above 1, as in fractions: say which they are by "units": "fraction" or "pixels": 1 (the '
            "whole file)",
        ),
        ([{"image_id": "a", "boxes": B}, {"image_id": "a", "boxes": []}], "an image stands there twice: 1 (entry 2)"),
        (
            {"a": {"boxes": A, "scores": [1, 1]}, "b": B},
            "scores for 2 boxes only: 1 (3 boxes in all)",
        ),
        (
            {"a": {"boxes": A}, "b": {"boxes": B, "labels": [1]}},
            "class_ids for 1 boxes only: 1 (3 boxes in all)",
        ),
        ({**COCO, "images": []}, "annotations without images: 1 (the whole file)"),
        ({"annotations": []}, "annotations without images: 1 (the whole file)"),
        ({**COCO, "annotations": {}}, "annotations are no list: 1 (the whole file)"),
        ({**COCO, "images": [*COCO["images"], {"file_name": "a"}]}, "no object with an id: 1 (image 3)"),
        (
            {**COCO, "images": COCO["images"][1:]},
            "image_id is not among the images: 3 (annotation 1, annotation 2, annotation 3)",
        ),
        (
            {**COCO, "images": [*COCO["images"], {"id": 10, "file_name": "val2014/plain.jpg"}]},
            "an image stands there twice: 1 (image 10)",
        ),
        (
            [{"image_id": 1, "bbox": [0, 0, 5]}, {"image_id": None, "bbox": [0, 0, 5, 5]}, 5],
            "no object with image_id and a bbox of 4 numbers: 3 (annotation 1, annotation 2, annotation 3)",
        ),
        ([{"image_id": 1, "bbox": [0, 0, 5, -1]}], "a box that ends before it begins: 1 (image 1)"),
        (
            [{"image_id": 1, "bbox": [0, 0, 5, 5], "score": 1}, {"image_id": 1, "bbox": [0, 0, 5, 5]}],
            "scores are not one number for each box: 1 (image 1)",
        ),
    ],
)
def test_what_is_wrong_with_a_whole_file_is_said(write: Callable[..., Path], content: object, fault: str) -> None:
    assert faults(write(content)) == fault


def test_a_fault_is_counted_and_the_first_20_places_named(write: Callable[..., Path]) -> None:
    places = ", ".join(f"entry {number}" for number in range(1, 21))
    assert faults(write([5] * 1234)) == f"no object with image_id and boxes: 1,234 ({places}, ...)"


def test_lines_that_are_no_json_are_named(write: Callable[..., Path]) -> None:
    content = lines({"image_id": "a", "boxes": []}) + "{\n" + "[" * 100_000 + "\n"
    assert faults(write(content, "boxes.jsonl")) == "no JSON: 2 (line 2, line 3)"


def test_a_file_that_is_no_json_is_refused(write: Callable[..., Path]) -> None:
    path = write('{"a": []}\n{"b": []}')
    with pytest.raises(InputDataError) as caught:
        read_boxes(path)
    assert str(caught.value) == (
        f"The boxes file {path} is not one JSON value in UTF-8: Extra data: line 2 column 1 (char 10). Write it again, "
        "or name it .jsonl if each line is an image"
    )


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError) as caught:
        read_boxes(tmp_path)
    assert str(caught.value) == (
        f"features.regions is {tmp_path}, which cannot be read: Is a directory. Give the path of a .json or .jsonl "
        "file of boxes"
    )


@pytest.mark.parametrize(
    "content",
    [
        *(
            None,
            True,
            5,
            0.5,
            '"text"',
            [None],
            {"a": 5},
            {"a": None},
            [{"bbox": 5}],
            {"annotations": [5]},
            {"images": 5},
        ),
        *({"images": [5], "annotations": []}, {"a": {"boxes": [[5]]}}, [{"image_id": []}], [{"boxes": {"a": 5}}]),
        *([[[]]], [{"image_id": 1, "bbox": {}}], {"images": [{"id": []}], "annotations": []}, {"units": [], "a": 5}),
    ],
)
@pytest.mark.parametrize("name", ["boxes.json", "boxes.jsonl"])
def test_any_json_is_refused_in_words(write: Callable[..., Path], name: str, content: object) -> None:
    assert faults(write(content, name))
