from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dept_vl.command_line import run
from dept_vl.nlvr import SPLITS, convert, main, sentence_key, summary
from dept_vl.tasks.nlvr2 import read
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

SENTENCES = {  # official split: the sentence of each set of scenes, and the scenes' labels
    "dev": {"1": ("There is a tower.", "tf"), "2": ("All boxes have a circle", "t"), "3": ("a box is empty", "ff")},
    "hidden": {"1": ("Two blocks are blue.", "ttf"), "4": ("there is  a Tower", "t")},
    "test": {"7": ("A box is empty.", "tft"), "8": ("There are six items.", "f")},
}
COLOURS = {"left": (255, 0, 0), "middle": (0, 255, 0), "right": (0, 0, 255)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Official dev, hidden and test in small, with scenes of three boxes in plain colours."""
    folder = tmp_path / "official"
    for split, sets in SENTENCES.items():
        (folder / split / "images").mkdir(parents=True)
        rows = []
        for number, (sentence, labels) in sets.items():
            for scene, label in enumerate(labels):
                name = f"{split}-{number}-{scene}-0.png"
                pixels = np.full((100, 400, 4), (128, 128, 128, 255), dtype=np.uint8)
                for start, colour in zip((0, 150, 300), COLOURS.values(), strict=True):
                    pixels[:, start : start + 100, :3] = colour
                Image.fromarray(pixels).save(folder / split / "images" / name)
                truth = {"t": "true", "f": "false"}[label]
                rows.append({"identifier": f"{number}-{scene}", "sentence": sentence, "label": truth, "image": name})
        write(folder / split / f"{split}.jsonl", rows)
    return folder


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def converted(source: Path, output: Path) -> dict[str, list[Example]]:
    assert convert(source, output)
    return {split: read(output, split, splits=SPLITS) for split in SPLITS}


def test_training_sentences_are_neither_in_the_test_nor_in_the_validation(source: Path, tmp_path: Path) -> None:
    examples = converted(source, tmp_path / "data")
    assert {split: [one.example_id for one in members] for split, members in examples.items()} == {
        # Of tower, circle and blue the first is held out, with all its scenes; "a box is empty" is in the test.
        "train": ["dev-2-0-0", "hidden-1-0-0", "hidden-1-1-0", "hidden-1-2-0"],
        "validation": ["dev-1-0-0", "dev-1-1-0", "hidden-4-0-0"],
        "test": ["test-7-0-0", "test-7-1-0", "test-7-2-0", "test-8-0-0"],
    }
    keys = {split: {sentence_key(one.text) for one in members} for split, members in examples.items()}
    assert not keys["train"] & keys["validation"]
    assert not keys["test"] & (keys["train"] | keys["validation"])


def test_capitals_spaces_and_the_final_period_make_no_other_sentence() -> None:
    assert sentence_key(" There is  a Tower .") == sentence_key("there is a tower") == "there is a tower"


def test_an_example_has_the_sentence_as_it_stands_its_label_and_its_three_boxes(source: Path, tmp_path: Path) -> None:
    example = converted(source, tmp_path / "data")["test"][1]
    assert example == Example(
        example_id="test-7-1-0",
        text="A box is empty.",
        image_ids=("nlvr-test-7-1-0", "nlvr-test-7-1-1", "nlvr-test-7-1-2"),
        references=("false",),
        targets=(Target("false", 1.0),),
        slices={"group": "test-7-0"},
    )


def test_the_scenes_of_a_set_are_one_group(source: Path, tmp_path: Path) -> None:
    examples = converted(source, tmp_path / "data")
    assert [one.slices["group"] for one in examples["test"]] == ["test-7-0"] * 3 + ["test-8-0"]
    # The same sentence of another set, and the same number of another split, are groups of their own, as officially.
    assert [one.slices["group"] for one in examples["validation"]] == ["dev-1-0"] * 2 + ["hidden-4-0"]


def test_the_crops_are_the_boxes_from_left_to_right(source: Path, tmp_path: Path) -> None:
    examples = converted(source, tmp_path / "data")
    folder = tmp_path / "data" / "images"
    wanted = [image_id for members in examples.values() for one in members for image_id in one.image_ids]
    assert sorted(path.stem for path in folder.iterdir()) == sorted(wanted)
    for image_id, colour in zip(examples["train"][0].image_ids, COLOURS.values(), strict=True):
        with Image.open(folder / f"{image_id}.png") as crop:
            assert (crop.size, crop.mode) == ((100, 100), "RGB")
            assert crop.getcolors() == [(100 * 100, colour)]


def test_converting_again_changes_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--input", str(source), "--output", str(tmp_path / "data")]
    assert run(main, arguments) == 0
    assert "Wrote" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert run(main, arguments) == 0
    assert "is there already; nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        convert(source, tmp_path / name)
    one, other = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "other")
    )
    assert one == other


def test_the_summary_gives_sizes_and_the_majority_baseline(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "data")
    assert list(summary(tmp_path / "data")) == [
        'train           4 scenes      2 sentences  always "true": accuracy 75.00 %, consistency 50.00 %',
        'validation      3 scenes      1 sentences  always "true": accuracy 66.67 %, consistency 50.00 %',
        'test            4 scenes      2 sentences  always "true": accuracy 50.00 %, consistency 0.00 %',
    ]


def test_what_a_stopped_conversion_left_is_no_part_of_the_data(source: Path, tmp_path: Path) -> None:
    (tmp_path / "data.partial" / "images").mkdir(parents=True)
    (tmp_path / "data.partial" / "images" / "nlvr-dev-9-0-0.png").write_text("half")
    (tmp_path / "data").mkdir()
    assert convert(source, tmp_path / "data")
    assert len(list((tmp_path / "data" / "images").iterdir())) == 33
    assert not (tmp_path / "data.partial").exists()


def test_a_folder_of_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    with pytest.raises(InputDataError, match=r"data holds something else than this data set. Give a new folder"):
        convert(source, tmp_path / "data")
    assert (tmp_path / "data" / "thesis.txt").read_text() == "mine"


def test_absent_splits_are_named_together(source: Path, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (source / split / f"{split}.jsonl").unlink()
    message = (
        f"{source} has no dev/dev.jsonl and no test/test.jsonl. "
        "Give the folder that has SPLIT/SPLIT.jsonl and SPLIT/images/ for dev, hidden and test"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        convert(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_all_wrong_rows_of_a_split_are_named_at_once(source: Path, tmp_path: Path) -> None:
    path = source / "hidden" / "hidden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["identifier"] = "hidden-1-0"
    rows[1]["label"] = "True"
    rows[2]["image"] = "hidden-1-2-5.png"
    write(path, [*rows, rows[3], {"identifier": "5-0", "sentence": 1}])
    message = (
        'hidden.jsonl: "sentence" is a whole number, not text: 1 (line 6); no "label": 1 (line 6); no "image": 1 '
        '(line 6); "identifier" is not sentence-scene, as in 1572-0: 1 (hidden-1-0); "label" is neither "true" nor '
        f'"false": 1 (1-1); no such image in {source / "hidden" / "images"}: 1 (hidden-1-2-5.png); '
        "duplicate identifier: 1 (4-0)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        convert(source, tmp_path / "data")


def test_what_is_no_scene_is_refused(source: Path, tmp_path: Path) -> None:
    image = source / "dev" / "images" / "dev-2-0-0.png"
    Image.new("RGB", (300, 100)).save(image)
    with pytest.raises(InputDataError, match=r"dev-2-0-0.png has 300 x 100 pixels; a scene has 400 x 100. Give NLVR's"):
        convert(source, tmp_path / "data")
    image.write_bytes(b"no image")
    with pytest.raises(InputDataError, match=r"dev-2-0-0.png cannot be read as an image: .*\. Copy it again"):
        convert(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.shared
def test_the_real_data_set_has_these_sizes_and_baselines(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Durability is tested elsewhere; for 8,000 crops it takes a minute on a busy disk.
    monkeypatch.setattr("dept_vl.nlvr.write_durably", lambda path, data: path.write_bytes(data))
    convert(shared / "data" / "nlvr", tmp_path / "data")
    assert list(summary(tmp_path / "data")) == [
        'train       1,541 scenes    382 sentences  always "true": accuracy 55.16 %, consistency 7.42 %',
        'validation    180 scenes     43 sentences  always "true": accuracy 52.22 %, consistency 2.08 %',
        'test          990 scenes    245 sentences  always "true": accuracy 56.16 %, consistency 10.90 %',
    ]
