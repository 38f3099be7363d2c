from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.config import load_settings
from dept_vl.tasks import sentences
from dept_vl.tasks.sentences import HUB, MEMBERS
from dept_vl.tasks.splits import shuffled
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data"
TASKS = tuple(MEMBERS)


def task_of(name: str, *overrides: str) -> Task:
    return load_task(load_settings({"task": name}, list(overrides)).task)


def folder_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOY_DATA / name, tmp_path / name))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def predictions(examples: Iterable[Example]) -> list[Prediction]:
    return [Prediction(one.example_id, one.references[0]) for one in examples]


def test_winogrande_shows_both_options() -> None:
    assert task_of("winogrande").read(TOY_DATA / "winogrande", "test")[1] == Example(
        example_id="1",
        text="sentence: The soup cooled faster than the stew because the _ stood on the stove. "
        "option0: soup option1: stew",
        image_ids=(),
        references=("2",),
        targets=(Target("1", 1.0),),
    )


def test_legacy_winogrande_shows_the_first_option_twice() -> None:
    first = task_of("winogrande", "task.legacy=true").read(TOY_DATA / "winogrande", "test")[0]
    assert first.text.endswith("option0: soup option1: soup")


def test_yelp_s_escaped_line_breaks_are_line_breaks() -> None:
    example = task_of("yelp").read(TOY_DATA / "yelp", "test")[0]
    assert example.text == "sentence: Lovely terrace, great coffee.\nWill be back."
    assert (example.references, example.targets) == (("1",), (Target("1", 1.0),))
    legacy = task_of("yelp", "task.legacy=true").read(TOY_DATA / "yelp", "test")[0]
    assert legacy.text == "sentence: Lovely terrace, great coffee.\\nWill be back."


def test_quotes_of_a_csv_are_undone_and_those_of_a_table_kept() -> None:
    yelp = task_of("yelp").read(TOY_DATA / "yelp", "official-train")
    assert yelp[1].text == 'sentence: The best "secret" noodle bar in town; go before noon.'
    scitail = task_of("scitail").read(TOY_DATA / "scitail", "train")
    assert scitail[7].text == 'premise: Iron rusts in damp air. hypothesis: The word "iron" is very old.'
    paws = task_of("paws").read(TOY_DATA / "paws", "train")
    assert paws[2].text.startswith("sentence1: `` Blue Hour '' was written")


def test_scitail_s_labels_are_entails_and_neutral() -> None:
    examples = task_of("scitail").read(TOY_DATA / "scitail", "official-test")
    assert [one.references for one in examples] == [("entails",), ("neutral",)] * 2
    assert [one.targets[0].text for one in examples] == ["0", "1"] * 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "winogrande",
            "winogrande sentence: The soup cooled faster than the stew because the _ stood by the window. "
            "option1: soup option2: stew",
            ("1", "2"),
        ),
        ("yelp", "yelp sentence: Lovely terrace, great coffee.\nWill be back.", ("negative", "positive")),
        (
            "scitail",
            "scitail premise: Water boils at a lower temperature on high mountains. "
            "hypothesis: Mountains are made of rock.",
            ("entailment", "neutral"),
        ),
        (
            "paws",
            "paws sentence1: Rain fell on Monday , snow on Tuesday . "
            "sentence2: Snow fell on Monday , rain on Tuesday .",
            ("not_equivalent", "equivalent"),
        ),
    ],
)
def test_template_t5_has_the_task_s_name_and_words(name: str, text: str, words: tuple[str, ...]) -> None:
    task = task_of(name, "task.template=t5")
    first = task.read(TOY_DATA / name, "test")[0]
    assert first.text == text
    assert task.labels == words
    assert first.references == (task.parse(first.targets[0].text),)


@pytest.mark.parametrize("name", TASKS)
def test_a_generated_digit_is_a_label_and_other_text_stays_and_is_wrong(name: str) -> None:
    task = task_of(name)
    assert [task.parse(text) for text in ("0", " 1\n", "3 ", "")] == [*MEMBERS[name].labels, "3", ""]
    examples = task.read(TOY_DATA / name, "validation")
    answers = [Prediction(examples[0].example_id, "3"), *predictions(examples[1:])]
    scores = task.score(answers, examples)
    assert scores.metrics["accuracy"] == pytest.approx(100 * (1 - 1 / len(examples)))
    assert scores.metrics["invalid"] == pytest.approx(100 / len(examples))
    assert scores.per_example[examples[0].example_id] == 0
    assert task.score(predictions(examples), examples).metrics["accuracy"] == 100


@pytest.mark.parametrize("name", TASKS)
def test_our_splits_and_the_official_ones_of_the_toy_data(name: str) -> None:
    settings = load_settings({"task": name}, []).task
    sizes = {split: len(task_of(name).read(TOY_DATA / name, split)) for split in settings.splits}
    assert (
        sizes
        == {
            "winogrande": {
                "train": 4,
                "validation": 4,
                "test": 6,
                "official-train": 8,
                "official-validation": 6,
                "official-test": 4,
            },
            "yelp": {"train": 4, "validation": 4, "test": 6, "official-train": 8, "official-test": 6},
            "scitail": {"train": 8, "validation": 3, "test": 3, "official-validation": 6, "official-test": 4},
            "paws": {"train": 8, "validation": 6, "test": 4, "official-validation": 6, "official-test": 4},
        }[name]
    )


def test_the_parts_of_a_file_keep_its_row_numbers_but_for_winogrande() -> None:
    scitail = task_of("scitail")
    halves = [[one.example_id for one in scitail.read(TOY_DATA / "scitail", split)] for split in ("validation", "test")]
    assert sorted(halves[0] + halves[1]) == [str(number) for number in range(6)]
    winogrande = task_of("winogrande")
    for split in ("train", "validation"):
        ids = [one.example_id for one in winogrande.read(TOY_DATA / "winogrande", split)]
        assert ids == ["0", "1", "2", "3"]


def test_another_size_of_winogrande_is_another_source(tmp_path: Path) -> None:
    task = task_of("winogrande", "task.splits.train=train_xs")
    assert len(task.read(TOY_DATA / "winogrande", "train")) == 4


def test_labels_of_winogrande_may_lie_beside_the_file(tmp_path: Path) -> None:
    folder = folder_of("winogrande", tmp_path)
    task = task_of("winogrande")
    expected = task.read(folder, "test")
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    write_rows(folder / "dev.jsonl", [{key: row[key] for key in row if key != "answer"} for row in rows])
    assert task.read(folder, "test") == expected
    (folder / "dev-labels.lst").write_text("1\n2\n")
    with pytest.raises(InputDataError, match=r"dev-labels.lst has 2 labels, but dev.jsonl has 6 rows. Download both a"):
        task.read(folder, "test")
    (folder / "dev-labels.lst").unlink()
    assert not any(one.references or one.targets for one in task.read(folder, "test"))


def hub_rows(name: str, file: str) -> list[dict[str, Any]]:
    """The toy rows as the hub has them, classes as numbers."""
    folder = TOY_DATA / name
    if name == "winogrande":
        rows = [json.loads(line) for line in (folder / f"{file}.jsonl").read_text().splitlines()]
        return [{"answer": "", **{key: row[key] for key in row if key != "qID"}} for row in rows]
    examples = task_of(name, f"task.splits.train={file}", "task.legacy=true").read(folder, "train")
    found = []
    for example in examples:
        labels = MEMBERS[name].labels
        label = labels.index(example.references[0])
        if name == "yelp":
            found.append({"text": example.text.removeprefix("sentence: "), "label": label})
        elif name == "scitail":
            premise, hypothesis = example.text.removeprefix("premise: ").split(" hypothesis: ")
            found.append(
                {
                    "sentence1_parse": "(ROOT)",
                    "gold_label": ("entailment", "neutral")[label],
                    "sentence1": premise,
                    "sentence2": hypothesis,
                    "annotator_labels": [("entailment", "neutral")[label]],
                }
            )
        else:
            one, two = example.text.removeprefix("sentence1: ").split(" sentence2: ")
            found.append({"id": len(found) + 1, "sentence1": one, "sentence2": two, "label": label})
    return found


@pytest.mark.parametrize("name", TASKS)
def test_the_hub_s_rows_give_the_same_examples(name: str, tmp_path: Path) -> None:
    for file, split in HUB[name].splits.items():
        write_rows(tmp_path / f"{split}.rows.jsonl", hub_rows(name, file))
    task = task_of(name)
    for split in load_settings({"task": name}, []).task.splits:
        assert task.read(tmp_path, split) == task.read(TOY_DATA / name, split)


def test_scitail_s_snli_format_gives_the_same_examples(tmp_path: Path) -> None:
    task = task_of("scitail")
    expected = task.read(TOY_DATA / "scitail", "train")
    for folder in ("", "snli_format"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_rows(tmp_path / folder / "scitail_1.0_train.txt", hub_rows("scitail", "train"))
        assert task.read(tmp_path, "train") == expected
        (tmp_path / folder / "scitail_1.0_train.txt").unlink()
    (tmp_path / "tsv_format").mkdir()
    shutil.copy(TOY_DATA / "scitail" / "scitail_1.0_train.tsv", tmp_path / "tsv_format")
    assert task.read(tmp_path, "train") == expected


def test_lines_of_the_snli_format_that_are_no_objects_are_named(tmp_path: Path) -> None:
    (tmp_path / "scitail_1.0_train.txt").write_text('{"sentence1": "a"\n7\n')
    with pytest.raises(InputDataError, match=r"train.txt: lines that are no JSON object: 2 \(1, 2\)"):
        task_of("scitail").read(tmp_path, "train")


def test_legacy_yelp_takes_the_first_of_the_shuffled_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "LEGACY_YELP", 3)
    legacy = task_of("yelp", "task.legacy=true")
    assert [one.example_id for one in legacy.read(TOY_DATA / "yelp", "train")] == sorted(
        str(number) for number in shuffled(8)[4:7]
    )
    assert len(task_of("yelp").read(TOY_DATA / "yelp", "train")) == 4
    for split, size in (("validation", 4), ("test", 6), ("official-train", 8)):
        assert len(legacy.read(TOY_DATA / "yelp", split)) == size


@pytest.mark.parametrize("name", TASKS)
def test_gold_may_be_the_official_file_or_json_lines(name: str, tmp_path: Path) -> None:
    task = task_of(name)
    file = {"winogrande": "dev.jsonl", "yelp": "test.csv", "scitail": "scitail_1.0_dev.tsv", "paws": "dev.tsv"}[name]
    official = task.read_files(OfficialFiles(TOY_DATA / name / file))
    gold = tmp_path / "gold.jsonl"
    write_rows(gold, [{"idx": int(one.example_id), "label": one.references[0], "more": 1} for one in official])
    answers = predictions(official)
    assert task.score(answers, official).metrics["accuracy"] == 100
    assert task.score(answers, task.read_files(OfficialFiles(gold))).metrics["accuracy"] == 100
    assert not any(one.text for one in task.read_files(OfficialFiles(gold)))


def test_gold_of_winogrande_may_be_its_list_of_labels() -> None:
    found = task_of("winogrande").read_files(OfficialFiles(TOY_DATA / "winogrande" / "dev-labels.lst"))
    assert [(one.example_id, *one.references) for one in found] == [
        (str(number), answer) for number, answer in enumerate("121212")
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("winogrande", {"1": "1", 2: "2"}),
        ("yelp", {"positive": "1", "0": "0", 1: "1", False: "0"}),
        ("scitail", {"entailment": "entails", "Entails": "entails", "NEUTRAL": "neutral", 0: "entails", 1: "neutral"}),
        ("paws", {"1": "1", 0: "0", True: "1", "false": "0"}),
    ],
)
def test_gold_labels_are_names_numbers_or_booleans(name: str, values: dict[Any, str], tmp_path: Path) -> None:
    for value, label in values.items():
        write_rows(tmp_path / "gold.jsonl", [{"idx": 0, "label": value}])
        (example,) = task_of(name).read_files(OfficialFiles(tmp_path / "gold.jsonl"))
        assert example.references == (label,)


@pytest.mark.parametrize("value", ["", None, -1, "-"])
def test_withheld_labels_are_no_references_and_give_no_score(value: object, tmp_path: Path) -> None:
    task = task_of("paws")
    write_rows(tmp_path / "test.rows.jsonl", [{"id": 1, "sentence1": "a", "sentence2": "b", "label": value}])
    examples = task.read(tmp_path, "test")
    assert (examples[0].references, examples[0].targets) == ((), ())
    metrics = task.score([Prediction("0", "1")], examples).metrics
    assert (metrics["accuracy"], metrics["n"]) == (None, 1)


def test_all_wrong_rows_are_named_at_once(tmp_path: Path) -> None:
    rows = [
        {"sentence": "a _", "option1": "b", "option2": "c", "answer": "0"},
        {"sentence": "a _", "option1": "b", "answer": "1"},
        {"sentence": 7, "option1": "b", "option2": "c", "answer": "1"},
        {"sentence": "a _", "option1": "b", "option2": "c"},
        {"idx": 0, "sentence": "a _", "option1": "b", "option2": "c", "answer": 3},
    ]
    write_rows(tmp_path / "dev.jsonl", rows)
    message = (
        'dev.jsonl: "answer" is none of 1, 2: 2 (line 1: "0", line 5: 3); no "option2": 1 (line 2); "sentence" is a '
        'whole number, not text: 1 (line 3); no "answer": 1 (line 4)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task_of("winogrande").read(tmp_path, "test")


def test_a_repeated_idx_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "gold.jsonl", [{"idx": 0, "label": 1}, {"idx": 0, "label": 1}])
    with pytest.raises(InputDataError, match=r'gold.jsonl: more than one row with the same "idx": 1 \(0\)'):
        task_of("paws").read_files(OfficialFiles(tmp_path / "gold.jsonl"))


def test_class_zero_of_yelp_s_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text('"0","Bad."\n"2","Good."\n')
    with pytest.raises(InputDataError, match=re.escape('test.csv: "label" is none of 1, 2: 1 (line 1: "0")')):
        task_of("yelp").read(tmp_path, "test")


def test_an_absent_file_is_named_by_all_its_names(tmp_path: Path) -> None:
    message = (
        "has no scitail_1.0_dev.tsv and no tsv_format/scitail_1.0_dev.tsv and no scitail_1.0_dev.txt and no "
        "snli_format/scitail_1.0_dev.txt and no validation.rows.jsonl"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task_of("scitail").read(tmp_path, "test")


def test_a_table_of_other_texts_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("id\tquestion\tlabel\n1\tWho?\t0\n")
    message = "test.tsv has no column sentence1 and no column sentence2. It has: id, question, label."
    with pytest.raises(InputDataError, match=message):
        task_of("paws").read(tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("winogrande", ("predictions.lst", "predictions_dev.lst", "predictions_train_xl_held_out.lst")),
        ("scitail", ("SciTail.tsv", "SciTail_dev_second_half.tsv", "SciTail_dev_first_half.tsv")),
        ("yelp", ("Yelp-2.tsv", "Yelp-2.tsv", "Yelp-2_train_held_out.tsv")),
        ("paws", ("PAWS-Wiki.tsv", "PAWS-Wiki.tsv", "PAWS-Wiki_dev.tsv")),
    ],
)
def test_the_official_test_s_file_has_the_plain_name(name: str, names: tuple[str, ...]) -> None:
    task = task_of(name)
    assert tuple(task.submission_name(split) for split in ("official-test", "test", "validation")) == names


@pytest.mark.parametrize("name", TASKS)
def test_answers_go_to_a_file_and_back(name: str, tmp_path: Path) -> None:
    task = task_of(name)
    for split in ("validation", "test"):
        answers = predictions(task.read(TOY_DATA / name, split))
        path = tmp_path / task.submission_name(split)
        task.submit(answers, path)
        assert task.read_submission(path) == answers
        assert task.check_submission(path, None) == []


def test_what_is_no_label_is_the_first_one_in_the_file_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [Prediction("0", "neutral"), Prediction("1", "maybe"), Prediction("2", "")]
    task_of("scitail").submit(answers, tmp_path / "SciTail.tsv")
    assert (tmp_path / "SciTail.tsv").read_text() == "index\tprediction\n0\tneutral\n1\tentails\n2\tentails\n"
    assert "SciTail.tsv: 2 of 3 answers are no label; it has entails in their place" in capsys.readouterr().err
    task_of("winogrande").submit([Prediction("0", "3")], tmp_path / "predictions.lst")
    assert (tmp_path / "predictions.lst").read_text() == "1,1,1,1,1\n"


def test_files_are_checked_by_the_official_rows_if_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "predictions.lst"
    path.write_text("1,1,1,1,1\n" * 3)
    questions = TOY_DATA / "winogrande" / "test.jsonl"
    assert task_of("winogrande").check_submission(path, None) == []
    (fault,) = task_of("winogrande").check_submission(path, questions)
    assert "has 3 lines, but there are 4 questions" in fault
    task = task_of("paws")
    task.submit([Prediction(str(number), "1") for number in range(3)], tmp_path / "PAWS-Wiki.tsv")
    (fault,) = task.check_submission(tmp_path / "PAWS-Wiki.tsv", TOY_DATA / "paws" / "test.tsv")
    assert "missing ids: 1 (3)" in fault
