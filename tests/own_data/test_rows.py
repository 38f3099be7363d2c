from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from dept_vl.own_data.rows import FORMS, OwnTable, read_table
from feature_extraction.errors import InputDataError

Write = Callable[[Iterable[object]], Path]
SOUND: dict[str, dict[str, object]] = {
    "vqa": {"image": "a.jpg", "question": "What is it?", "answers": ["a dog", "dog"]},
    "gqa": {"image": "a.jpg", "question": "What is it?", "answer": "dog"},
    "caption": {"image": "a.jpg", "captions": ["A dog.", "A big dog."]},
    "nlvr2": {"images": ["a.jpg", "b.jpg"], "sentence": "Both are dogs.", "label": "True"},
}
QUESTION = SOUND["vqa"]
PAIR = SOUND["nlvr2"]


@pytest.fixture
def read(write_table: Write, photos: Path) -> Callable[..., OwnTable]:
    def of(*rows: object, task: str = "vqa") -> OwnTable:
        return read_table(write_table(rows), task, photos)

    return of


Read = Callable[..., OwnTable]


def faults(read: Read, *rows: object, task: str = "vqa") -> list[str]:
    """What is said to be wrong with a table, sentence by sentence."""
    with pytest.raises(InputDataError) as caught:
        read(*rows, task=task)
    message = re.fullmatch(
        r".*mine\.jsonl: (.*)\. Nothing was written: correct this and run the command again", str(caught.value)
    )
    assert message is not None
    return message[1].split("; ")


def test_every_task_has_its_form() -> None:
    assert set(FORMS) == set(SOUND)


@pytest.mark.parametrize(
    ("task", "images", "text", "answers"),
    [
        ("vqa", ("a",), "What is it?", ("a dog", "dog")),
        ("gqa", ("a",), "What is it?", ("dog",)),
        ("caption", ("a",), "", ("A dog.", "A big dog.")),
        ("nlvr2", ("a", "b"), "Both are dogs.", ("True",)),
    ],
)
def test_a_sound_row_is_read(
    read: Read, task: str, images: tuple[str, ...], text: str, answers: tuple[str, ...]
) -> None:
    (row,) = read(SOUND[task], task=task).rows
    assert (row.image_ids, row.text, row.answers) == (images, text, answers)
    assert (row.number, row.own_id, row.split) == (1, "1", None)


@pytest.mark.parametrize(
    ("task", "content"),
    [
        ("vqa", "Image,Question,Answers\na.jpg,What is it?,a dog|dog\n"),
        ("vqa", "img;query;answer1;answer2;answer3\na;What is it?;a dog;dog;\n"),
        ("gqa", "image_id,question,answer\na,What is it?,dog\n"),
        ("gqa", "images,question,answers\na.jpg,What is it?,dog\n"),
        ("caption", "file name,caption 1,caption 2\na.jpg,A dog.,A big dog.\n"),
        ("nlvr2", "left,right,sentence,label\na.jpg,b.jpg,Both are dogs.,yes\n"),
        ("nlvr2", "statement,images,truth\nBoth are dogs.,a|b,1\n"),
        ("nlvr2", "image1,image2,sentence,label\na.jpg,b.jpg,Both are dogs.,TRUE\n"),
        ("nlvr2", "image,image2,sentence,label\na.jpg,b.jpg,Both are dogs.,true\n"),
    ],
)
def test_csv_says_the_same_under_many_names(read: Read, photos: Path, task: str, content: str) -> None:
    path = photos.parent / "mine.csv"
    path.write_text(content)
    (row,) = read_table(path, task, photos).rows
    (other,) = read(SOUND[task], task=task).rows
    assert (row.images, row.text, row.answers) == (other.images, other.text, other.answers)


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("a", "a"),
        ("a.jpg", "a"),
        ("./a.jpg", "a"),
        ("d", "d"),
        ("d.jpg", "d"),
        ("more/d.jpg", "d"),
        ("more\\d.jpg", "d"),
        ("e.PNG", "e"),
    ],
)
def test_an_image_is_found_by_its_id_or_its_path(read: Read, name: str, image_id: str) -> None:
    assert read({**QUESTION, "image": name}).rows[0].image_ids == (image_id,)


def test_an_image_is_found_by_its_full_path(read: Read, photos: Path) -> None:
    assert read({**QUESTION, "image": str(photos / "a.jpg")}).rows[0].image_ids == ("a",)


def test_all_missing_images_are_counted_and_the_first_named(read: Read, photos: Path) -> None:
    rows = [
        {**QUESTION, "image": name, "question": f"{number}?"} for number in (1, 2) for name in ("more/a.jpg", "a.png")
    ]
    rows += [{**QUESTION, "image": f"{number}.jpg"} for number in range(1000)]
    (fault,) = faults(read, *rows)
    assert fault == (
        f"images that are not in {photos}, which has 8 such as a.jpg: 1,002 "
        "(more/a.jpg, a.png, 0.jpg, 1.jpg, 2.jpg, ...)"
    )


def test_a_wrong_folder_is_told_with_the_faults_of_the_table(write_table: Write, tmp_path: Path) -> None:
    message = (
        r'rows without "question": 1 \(line 1\); There is no .*nowhere\. --images takes a folder of images.*'
        r"Nothing was written"
    )
    with pytest.raises(InputDataError, match=message):
        read_table(write_table([{**QUESTION, "question": " "}]), "vqa", tmp_path / "nowhere")


def test_images_in_an_archive_are_found_by_member_name_and_id(write_table: Write, photos: Path) -> None:
    with tarfile.open(photos.parent / "photos.tar", "w") as archive:
        archive.add(photos / "a.jpg", "web/a.jpg")
    for name in ("web/a.jpg", "a"):
        table = write_table([{**QUESTION, "image": name}])
        assert read_table(table, "vqa", photos.parent / "photos.tar").rows[0].image_ids == ("a",)


def test_a_list_of_images_will_do(write_table: Write, photos: Path) -> None:
    (photos.parent / "list.txt").write_text("photos/a.jpg\n")
    assert read_table(write_table([QUESTION]), "vqa", photos.parent / "list.txt").rows[0].image_ids == ("a",)
    message = r"images that are not in .*list.txt, which has 1 such as a.jpg: 1 \(b.jpg\)"
    with pytest.raises(InputDataError, match=message):
        read_table(write_table([{**QUESTION, "image": "b.jpg"}]), "vqa", photos.parent / "list.txt")


def test_white_space_in_texts_becomes_single_spaces(read: Read) -> None:
    row = {"image": " a.jpg ", "question": " What\nis  it? ", "answers": ["a\tdog "]}
    (row,) = read(row).rows
    assert (row.text, row.answers) == ("What is it?", ("a dog",))


def test_missing_columns_are_named_with_the_most_similar_ones(read: Read) -> None:
    assert faults(read, {"pixels": "a.jpg", "qestion": "?", "answers": ["x"]}) == [
        'no column "image" (there are: pixels, qestion, answers)',
        'no column "question" (there are: pixels, qestion, answers',
        "is 'qestion' meant?)",
    ]


@pytest.mark.parametrize("task", FORMS)
def test_all_that_rows_lack_is_named(read: Read, task: str) -> None:
    sound = SOUND[task]
    rows = [sound, *({**sound, name: [] if isinstance(value, list) else ""} for name, value in sound.items())]
    expected = [f'rows without "{name}": 1 (line {line})' for line, name in enumerate(sound, start=2)]
    if task == "nlvr2":
        expected[0] = 'rows without "images": 1 (line 2)'
    assert sorted(faults(read, *rows, task=task)) == sorted(expected)


def test_a_table_without_rows_is_refused(read: Read) -> None:
    assert faults(read) == ["there are no rows"]


def test_labels_are_spelled_as_in_nlvr2(read: Read) -> None:
    said = [True, False, "True", "false", 1, 0, 1.0, "YES", "no"]
    table = read(*({**PAIR, "label": one, "sentence": str(index)} for index, one in enumerate(said)), task="nlvr2")
    assert [row.answers[0] for row in table.rows] == [
        *("True", "False", "True", "False", "True", "False", "True", "True", "False")
    ]


def test_other_labels_are_named(read: Read) -> None:
    assert faults(read, PAIR, {**PAIR, "label": "maybe"}, task="nlvr2") == [
        "a \"label\" that is none of true, false, yes, no, 1, 0: 1 ('maybe' in line 2)"
    ]


def test_all_rows_have_the_same_number_of_images(read: Read) -> None:
    three = {**PAIR, "images": ["a", "b", "c"]}
    assert len(read(three, task="nlvr2").rows[0].images) == 3
    assert faults(read, PAIR, three, {**PAIR, "images": ["c"]}, task="nlvr2") == [
        "another number of images than the 2 of the first row: 2 (line 2, line 3)"
    ]


def test_a_question_of_gqa_has_one_answer(read: Read) -> None:
    assert faults(read, {**SOUND["gqa"], "answer": ["dog", "cat"]}, task="gqa") == [
        'more than one "answer": 1 (line 1)'
    ]


def test_the_same_id_twice_is_named_with_both_places(read: Read) -> None:
    rows = [{**QUESTION, "id": name, "question": f"{line}?"} for line, name in enumerate(("x", 7, "x", "7"))]
    assert faults(read, *rows) == ["the same id twice: 2 ('x' in line 1 and line 3, '7' in line 2 and line 4)"]


def test_where_some_rows_have_an_id_or_a_split_all_have(read: Read) -> None:
    rows = [{**QUESTION, "id": "x", "split": "train"}, {**QUESTION, "question": "else?"}]
    assert faults(read, *rows) == ['rows without "id": 1 (line 2)', 'rows without "split": 1 (line 2)']


@pytest.mark.parametrize("task", FORMS)
def test_rows_that_are_there_twice_are_named(read: Read, task: str) -> None:
    what = "captions of an image" if task == "caption" else "rows"
    count = "2 (line 1 and line 2, line 1 and line 2)" if task == "caption" else "1 (line 1 and line 2)"
    assert faults(read, SOUND[task], SOUND[task], task=task) == [f"{what} given twice: {count}"]


def test_a_caption_may_be_there_twice_for_different_images_only(read: Read) -> None:
    read(SOUND["caption"], {**SOUND["caption"], "image": "b"}, task="caption")
    row = {"image": "a", "captions": ["A dog.", "A dog."]}
    assert faults(read, row, task="caption") == ["captions of an image given twice: 1 (line 1 and line 1)"]


def test_answers_that_contradict_are_kept_and_noted(read: Read) -> None:
    table = read(QUESTION, {**QUESTION, "answers": ["cat"]})
    assert len(table.rows) == 2
    assert table.notes == [
        "the same question about the same images, with another answers: 1 (line 1 and line 2). All are kept; where "
        "several people answered one question, their answers belong into one row"
    ]
    (note,) = read(PAIR, {**PAIR, "label": False}, task="nlvr2").notes
    assert note.startswith("the same sentence about the same images, with another label: 1 (line 1 and line 2)")
    assert not read(PAIR, {**PAIR, "images": ["b", "a"], "label": False}, task="nlvr2").notes


def test_splits_go_by_several_names(read: Read) -> None:
    names = ["train", "Training", "val", "valid", "validation", "DEV", "test"]
    table = read(
        *({**QUESTION, "question": f"{name}?", "split": name, "image": "abcdefg"[at]} for at, name in enumerate(names))
    )
    assert [row.split for row in table.rows] == ["train"] * 2 + ["validation"] * 4 + ["test"]
    assert table.notes == []


def test_other_splits_are_named(read: Read) -> None:
    assert faults(read, {**QUESTION, "split": "holdout"}) == [
        "a \"split\" that is none of train, validation, test: 1 ('holdout' in line 1)"
    ]


def test_images_in_several_splits_are_noted(read: Read) -> None:
    rows = [{**QUESTION, "question": f"{split}?", "split": split} for split in ("train", "test")]
    assert read(*rows, {**QUESTION, "image": "b", "split": "test"}).notes == [
        "images in several splits: 1 (a). Scores of images that were trained on are too good; without the column, rows "
        "are split by image"
    ]


def test_captions_of_an_image_are_in_one_split(read: Read) -> None:
    rows = [{"image": "a", "caption": split, "split": split} for split in ("train", "test")]
    assert faults(read, *rows, task="caption") == ["images with captions in several splits: 1 (a)"]


def test_columns_that_are_not_used_are_noted(read: Read) -> None:
    assert read({**QUESTION, "author": "me", "answer type": "x"}).notes == ["columns not used: author, answer type"]


def test_faults_of_all_kinds_are_told_together(read: Read, photos: Path) -> None:
    rows = [
        {**QUESTION, "id": 1},
        {**QUESTION, "id": 1},
        [1],
        {"image": "x.jpg", "question": "?", "answers": {}, "id": 2},
        {"image": "x.jpg", "question": "", "answers": ["x"], "id": 3},
    ]
    assert faults(read, *rows) == [
        "lines that are no JSON object: 1 (line 3)",
        '"answers" is an object, not text: 1 (line 4)',
        'rows without "question": 1 (line 5)',
        "the same id twice: 1 ('1' in line 1 and line 2)",
        "rows given twice: 1 (line 1 and line 2)",
        f"images that are not in {photos}, which has 8 such as a.jpg: 1 (x.jpg)",
    ]
