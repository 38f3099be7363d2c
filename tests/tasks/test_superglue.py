from __future__ import annotations

import json
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sklearn import metrics as sklearn_metrics

from dept_vl.config import load_settings
from dept_vl.formats.submission.label_jsonl import write_label_jsonl
from dept_vl.leaderboard import score_files
from dept_vl.tasks.superglue import HUB, SERVER_FILES, TASKS, mark_spans
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError, UsageError

TOY_DATA = Path(__file__).parents[1] / "toy_data"
NAMES = tuple(TASKS)


def make(name: str, *overrides: str) -> Task:
    return load_task(load_settings({"task": name}, list(overrides)).task)


def gold(examples: list[Example]) -> list[Prediction]:
    return [Prediction(one.example_id, one.references[0]) for one in examples]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


@pytest.mark.parametrize(
    ("name", "dept", "t5", "reference", "targets"),
    [
        (
            "boolq",
            "question: is the dog of house 0 red passage: House 0 -- There is one dog in this house. The dog is red, "
            "as the dogs of all houses on the road are.",
            "boolq passage: House 0 -- There is one dog in this house. The dog is red, as the dogs of all houses on "
            "the road are. question: is the dog of house 0 red",
            "true",
            ("1", "True"),
        ),
        (
            "cb",
            "premise: A: Is there a dog? B: I think there are two of them. A: Yeah. hypothesis: there are two of them",
            "cb hypothesis: there are two of them premise: A: Is there a dog? B: I think there are two of them. "
            "A: Yeah.",
            "entailment",
            ("0", "entailment"),
        ),
        (
            "wic",
            "sentence1: Is there any shape on the wall? sentence2: A red shape is a shape. word: shape",
            "wic sentence1: Is there any shape on the wall? sentence2: A red shape is a shape. word: shape",
            "true",
            ("1", "True"),
        ),
        (
            "wsc",
            "text: * The dog * did not see the cat because # it # was blind .",
            "wsc text: * The dog * did not see the cat because # it # was blind .",
            "True",
            ("1", "True"),
        ),
        (
            "multirc",
            "question: How many cats are there in house 0? answer: Two paragraph: Sent 1: There are two cats in house "
            "0, one of them red. Sent 2: There are two dogs, too. ",
            "multirc question: How many cats are there in house 0? answer: Two paragraph: Sent 1: There are two cats "
            "in house 0, one of them red. Sent 2: There are two dogs, too. ",
            "1",
            ("1", "True"),
        ),
    ],
)
def test_texts_and_labels_are_those_of_dept_and_of_t5(
    name: str, dept: str, t5: str, reference: str, targets: tuple[str, str]
) -> None:
    for template, text, target in zip(("dept", "t5"), (dept, t5), targets, strict=True):
        task = make(name, f"task.template={template}")
        first = task.read(TOY_DATA / name, "train")[0]
        assert first.text == text
        assert first.references == (reference,)
        assert first.targets == (Target(target, 1.0),)
        assert first.image_ids == ()
        assert target in task.labels
        assert task.parse(f" {target}\n") == reference


@pytest.mark.parametrize("template", ["dept", "t5"])
def test_record_asks_for_an_entity_and_accepts_several(template: str) -> None:
    task = make("record", f"task.template={template}")
    first = task.read(TOY_DATA / "record", "official-train")[0]
    assert first == Example(
        example_id="10",
        text="record query: On day 0, the dog of @placeholder was away entities: Ann Lee, Łódź, Mary Lee, Lee passage: "
        "The dog of Ann Lee ran to Łódź on day 0. Mary Lee saw it. Lee said that the dog is blue",
        image_ids=(),
        references=("Ann Lee", "Lee"),
        targets=(Target("Ann Lee", 1.0), Target("Lee", 1.0)),
    )
    assert task.labels == ()
    assert task.parse(" Ann Lee ") == "Ann Lee"


def test_a_text_that_is_no_label_stays_as_it_is() -> None:
    assert make("cb").parse(" entails ") == "entails"
    assert make("boolq", "task.template=t5").parse("1") == "1"


def test_ids_are_the_official_indices() -> None:
    ids = [one.example_id for one in make("multirc").read(TOY_DATA / "multirc", "official-validation")]
    assert ids == [
        *("0-4-9", "0-4-10", "0-4-11", "0-5-12", "0-5-13"),
        *("1-8-21", "1-8-22", "1-9-23", "1-9-24", "1-9-25"),
    ]
    assert [one.example_id for one in make("cb").read(TOY_DATA / "cb", "official-test")] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", NAMES)
def test_the_halves_of_the_validation_set_are_dept_s_and_the_official_set_is_whole(name: str) -> None:
    task = make(name)
    splits = load_settings({"task": name}, []).task.splits
    whole = {one.example_id for one in task.read(TOY_DATA / name, "official-validation")}
    parts = [{one.example_id for one in task.read(TOY_DATA / name, split)} for split in ("validation", "test")]
    if name == "record":
        assert (splits["validation"], splits["test"]) == ("train/held_out", "val")
        assert parts[1] == whole
    else:
        assert (splits["validation"], splits["test"]) == ("val/first_half", "val/second_half")
        assert parts[0] | parts[1] == whole
        assert not parts[0] & parts[1]


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_the_test_set_are_withheld(name: str) -> None:
    task = make(name)
    examples = task.read(TOY_DATA / name, "official-test")
    assert not any(one.references or one.targets for one in examples)
    scores = task.score([Prediction(one.example_id, "x") for one in examples], examples)
    assert scores.metrics["n"] == len(examples)
    assert {value for key, value in scores.metrics.items() if key not in ("n", "invalid")} == {None}
    assert scores.per_example == {}


HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "boolq": [{"question": "q", "passage": "p", "idx": 0, "label": 1}],
    "cb": [{"premise": "p", "hypothesis": "h", "idx": 0, "label": 2}],
    "wic": [{"word": "w", "sentence1": "a", "sentence2": "b", "start1": 0, "idx": 0, "label": 0}],
    "wsc": [
        {
            "text": "Ann saw it .",
            "span1_text": "Ann",
            "span1_index": 0,
            "span2_text": "it",
            "span2_index": 2,
            "idx": 0,
            "label": 0,
        }
    ],
    "multirc": [
        {
            "paragraph": "p",
            "question": "q",
            "answer": "a",
            "idx": {"paragraph": 0, "question": 3, "answer": 11},
            "label": 1,
        }
    ],
    "record": [
        {
            "passage": "p\n@highlight\nh",
            "query": "@placeholder q",
            "entities": ["A", "B"],
            "entity_spans": {"text": ["A"], "start": [0], "end": [1]},
            "answers": ["A", "B"],
            "idx": {"passage": 0, "query": 7},
        }
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_s_rows_are_read_where_there_is_no_official_file(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "validation.rows.jsonl", HUB_ROWS[name])
    (example,) = make(name).read(tmp_path, "official-validation")
    expected = {
        "boolq": ("0", "question: q passage: p", ("true",)),
        "cb": ("0", "premise: p hypothesis: h", ("neutral",)),
        "wic": ("0", "sentence1: a sentence2: b word: w", ("false",)),
        "wsc": ("0", "text: * Ann * saw # it # .", ("False",)),
        "multirc": ("0-3-11", "question: q answer: a paragraph: p", ("1",)),
        "record": ("7", "record query: @placeholder q entities: A, B passage: p. h", ("A", "B")),
    }
    assert (example.example_id, example.text, example.references) == expected[name]
    assert make(name).read_files(OfficialFiles(tmp_path / "validation.rows.jsonl"))[0].references == example.references


def test_the_hub_s_sets_are_named_by_their_configurations() -> None:
    assert {source.repository for source in HUB.values()} == {"aps/super_glue"}
    assert {name: source.config for name, source in HUB.items() if source.config != name} == {"wsc": "wsc.fixed"}


@pytest.mark.parametrize(("name", "label"), [("boolq", "true"), ("wic", "true"), ("wsc", "True"), ("multirc", "1")])
@pytest.mark.parametrize("given", [True, 1, "1", "true", "True"])
def test_labels_are_names_numbers_or_booleans(name: str, label: str, given: object, tmp_path: Path) -> None:
    if name == "multirc" and str(given).lower() == "true" and given is not True:
        return  # its labels have no names
    write_rows(tmp_path / "validation.rows.jsonl", [{**HUB_ROWS[name][0], "label": given}])
    assert make(name).read(tmp_path, "official-validation")[0].references == (label,)


def test_other_labels_are_refused_by_their_lines(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.jsonl", [{**HUB_ROWS["cb"][0], "idx": index, "label": index} for index in range(4)])
    with pytest.raises(InputDataError, match=r"entailment, contradiction, neutral.*: 1 \(line 4: 3\)"):
        make("cb").read(tmp_path, "official-validation")


def test_all_wrong_rows_are_named_at_once(tmp_path: Path) -> None:
    row = {"question": "q", "passage": "p", "label": True}
    lines = [{**row, "idx": 0}, {**row, "idx": None}, {**row, "idx": 1, "question": 7}, {"idx": 2, "question": "q"}]
    write_rows(tmp_path / "val.jsonl", lines)
    message = (
        'val.jsonl: "idx" is no whole number, nor are all of its parts: 1 (line 2); "question" is a whole number, not '
        'text: 1 (line 3); no "passage": 1 (line 4)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        make("boolq").read(tmp_path, "official-validation")
    write_rows(tmp_path / "val.jsonl", [lines[0], lines[0]])
    with pytest.raises(InputDataError, match=r'val.jsonl: more than one row with the same "idx": 1 \(0\)'):
        make("boolq").read(tmp_path, "official-validation")


def test_answers_of_record_are_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.jsonl", [{**HUB_ROWS["record"][0], "answers": [1]}])
    with pytest.raises(InputDataError, match=r'"answers" is not a list of texts: 1 \(line 1\)'):
        make("record").read(tmp_path, "official-validation")


def test_absent_files_and_unknown_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"has no val.jsonl and no validation.rows.jsonl"):
        make("rte" if "rte" in NAMES else "cb").read(tmp_path, "validation")
    with pytest.raises(UsageError, match=r"'first' is no part of a file"):
        make("cb", "task.splits.validation=val/first").read(TOY_DATA / "cb", "validation")


def f1_of(label: str, truth: list[str], answers: list[str]) -> float:
    """In percent, from precision and recall."""
    hits = sum(one == other == label for one, other in zip(truth, answers, strict=True))
    precision, recall = hits / max(answers.count(label), 1), hits / max(truth.count(label), 1)
    return 200 * precision * recall / (precision + recall) if hits else 0


def check_scores(task: Task, predictions: list[Prediction], examples: list[Example]) -> None:
    truth, answers = [one.references[0] for one in examples], [one.answer for one in predictions]
    metrics = task.score(predictions, examples).metrics
    assert metrics["accuracy"] == pytest.approx(100 * sum(map(str.__eq__, truth, answers)) / len(truth))
    assert metrics["invalid"] == 0
    if "f1_macro" in metrics:
        wanted = [f1_of(label, truth, answers) for label in TASKS[task.name].form.labels]
        assert metrics["f1_macro"] == pytest.approx(sum(wanted) / 3)
    if "f1_a" in metrics:
        assert metrics["f1_a"] == pytest.approx(f1_of("1", truth, answers))


@pytest.mark.parametrize("name", ["boolq", "cb", "wic", "wsc", "multirc"])
def test_scores_are_their_definitions(name: str) -> None:
    task = make(name)
    examples = task.read(TOY_DATA / name, "official-validation")
    source, labels = random.Random(1), TASKS[name].form.labels
    for _ in range(20):
        check_scores(task, [Prediction(one.example_id, source.choice(labels)) for one in examples], examples)


def test_scores_are_scikit_learn_s() -> None:
    source = random.Random(2)
    for name, average in (("cb", "macro"), ("multirc", "binary")):
        labels = TASKS[name].form.labels
        for _ in range(50):
            truth, answers = (source.choices(labels, k=9) for _ in range(2))
            examples = [Example(f"0-0-{index}", "", (), references=(one,)) for index, one in enumerate(truth)]
            predictions = [Prediction(f"0-0-{index}", one) for index, one in enumerate(answers)]
            metrics = make(name).score(predictions, examples).metrics
            chosen = {"labels": labels, "average": "macro"} if average == "macro" else {"pos_label": "1"}
            wanted = 100 * sklearn_metrics.f1_score(truth, answers, zero_division=0, **chosen)
            assert metrics["f1_macro" if average == "macro" else "f1_a"] == pytest.approx(wanted)
            assert metrics["accuracy"] == pytest.approx(100 * sklearn_metrics.accuracy_score(truth, answers))


def test_cb_s_macro_f1_is_over_three_labels_whatever_there_is() -> None:
    task = make("cb")
    examples = [Example(str(index), "", (), references=("entailment",)) for index in range(4)]
    assert task.score(gold(examples), examples).metrics["f1_macro"] == pytest.approx(100 / 3)
    assert task.score(gold(examples), examples).metrics["accuracy"] == 100


def test_multirc_s_exact_match_is_per_paragraph_and_question() -> None:
    task = make("multirc")
    truth = {"0-0-0": "1", "0-0-1": "0", "0-1-2": "1", "1-0-3": "0", "1-0-4": "1"}
    examples = [Example(example_id, "", (), references=(label,)) for example_id, label in truth.items()]
    answers = truth | {"0-1-2": "0", "1-0-3": "maybe"}
    scores = task.score([Prediction(*pair) for pair in answers.items()], examples)
    assert scores.per_example == {"0-0-0": 1, "0-0-1": 1, "0-1-2": 0, "1-0-3": 0, "1-0-4": 1}
    assert scores.metrics["exact_match"] == pytest.approx(100 / 3)
    # "maybe" counts as the opposite of gold: 2 right of class 1, 1 wrong, 1 missing.
    assert scores.metrics["f1_a"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert scores.metrics["accuracy"] == 60
    assert scores.metrics["invalid"] == 20
    assert "f1" not in scores.metrics


def test_record_is_scored_by_words_and_in_legacy_by_each_answer_alone() -> None:
    examples = [Example("0", "", (), references=("Ann Lee", "Lee")), Example("1", "", (), references=("Łódź",))]
    predictions = [Prediction("0", "the Lee"), Prediction("1", "Paris")]
    official = make("record").score(predictions, examples)
    assert (official.metrics["exact_match"], official.metrics["f1"], official.metrics["n"]) == (50, 50, 2)
    legacy = make("record", "task.legacy=true").score(predictions, examples)
    assert legacy.metrics["exact_match"] == pytest.approx(100 / 3)
    assert legacy.metrics["f1"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert legacy.metrics["n"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_submission_goes_out_and_comes_back(name: str, tmp_path: Path) -> None:
    task = make(name)
    examples = task.read(TOY_DATA / name, "official-validation")
    path = tmp_path / task.submission_name("test")
    task.submit(gold(examples), path)
    assert path.name.replace("_val_second_half", "_val") == TASKS[name].file.replace(".", "_val.")
    assert task.submission_name("official-test") == TASKS[name].file
    assert task.read_submission(path) == gold(examples)
    assert task.check_submission(path, TOY_DATA / name / "val.jsonl") == []
    assert task.check_submission(path, None) == []
    scores = score_files(task, path, OfficialFiles(TOY_DATA / name / "val.jsonl"))
    assert scores == task.score(gold(examples), examples)
    assert set(scores.per_example.values()) == {1.0}


def test_labels_have_the_official_spelling_and_types(tmp_path: Path) -> None:
    written = {}
    for name in NAMES:
        task = make(name)
        task.submit(gold(task.read(TOY_DATA / name, "train"))[:1], tmp_path / name)
        written[name] = rows(tmp_path / name)
    assert written["boolq"] == [{"idx": 0, "label": "true"}]
    assert written["cb"] == [{"idx": 0, "label": "entailment"}]
    assert written["wic"] == [{"idx": 0, "label": "true"}]
    assert written["wsc"] == [{"idx": 0, "label": "True"}]
    answers = {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": 1}]}]}
    assert written["multirc"] == [{"idx": 0, "passage": answers}]


def test_what_is_no_label_is_submitted_as_the_first_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "BoolQ.jsonl"
    make("boolq").submit([Prediction("0", "maybe"), Prediction("1", "true"), Prediction("2", "")], path)
    assert [row["label"] for row in rows(path)] == ["false", "true", "false"]
    message = f"{path}: 2 of 3 answers are no label; it has false in their place\n"
    assert capsys.readouterr().err == message
    make("record").submit([Prediction("0", "anything")], path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "label"),
    [("boolq", "true"), ("boolq", 1), ("boolq", True), ("cb", "neutral"), ("cb", 2), ("multirc", 1), ("multirc", "1")],
)
def test_gold_may_be_json_lines_of_indices_and_labels(name: str, label: object, tmp_path: Path) -> None:
    index = {"paragraph": 0, "question": 2, "answer": 5} if name == "multirc" else 4
    path = write_rows(tmp_path / "gold.jsonl", [{"idx": index, "label": label, "more": None}])
    (example,) = make(name).read_files(OfficialFiles(path))
    assert example.references == ({"boolq": "true", "cb": "neutral", "multirc": "1"}[name],)
    assert example.example_id == ("0-2-5" if name == "multirc" else "4")


def test_gold_of_record_may_be_one_label(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "gold.jsonl", [{"idx": 4, "label": "Ann Lee"}])
    assert make("record").read_files(OfficialFiles(path))[0].references == ("Ann Lee",)


def test_missing_and_unknown_ids_of_predictions_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "BoolQ.jsonl", [{"idx": index, "label": "true"} for index in range(1, 7)])
    with pytest.raises(InputDataError, match=r"missing ids: 1 \(0\); ids that the split does not have: 1 \(6\)"):
        score_files(make("boolq"), path, OfficialFiles(TOY_DATA / "boolq" / "val.jsonl"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The server's zip, with as many rows as the test sets have."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, (form, count) in SERVER_FILES.items():
        ids = (f"{index // 60}-{index // 10}-{index}" if form.nested else str(index) for index in range(count))
        write_label_jsonl(folder / name, form, [Prediction(one, (form.labels or ("x",))[0]) for one in ids])
    return pack(folder, tmp_path / "submission.zip")


def pack(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(folder.iterdir()):
            target.write(file, file.name)
    return path


def test_a_zip_of_all_ten_files_is_checked_whatever_the_task(archive: Path, tmp_path: Path) -> None:
    assert len(SERVER_FILES) == 10
    for name in NAMES:
        assert make(name).check_submission(archive, None) == []
    form, _ = SERVER_FILES["WSC.jsonl"]
    write_label_jsonl(tmp_path / "files" / "WSC.jsonl", form, [Prediction("0", "true")])
    (tmp_path / "files" / "AX-b.jsonl").unlink()
    pack(tmp_path / "files", archive)
    assert make("cb").check_submission(archive, None) == [
        'WSC.jsonl: labels other than False, True: 1 (0: "true")',
        "WSC.jsonl: the number of its labels is 1, but that of the test set is 146",
        "no AX-b.jsonl at the archive's top",
    ]


def test_a_zip_is_checked_by_the_questions_of_its_task(archive: Path) -> None:
    (fault,) = make("cb").check_submission(archive, TOY_DATA / "cb" / "test.jsonl")
    assert fault.startswith("CB.jsonl: ids that the questions do not have: 246 (4, 5, ")


@pytest.mark.parametrize(
    ("text", "spans", "marked"),
    [
        ("Ann saw Ann .", [("Ann", 2, "*"), ("saw", 1, "#")], "Ann # saw # * Ann * ."),
        ("He saw the dog.", [("The dog", 2, "*"), ("He", 0, "#")], "# He # saw * the dog *."),
        ('She said "he is" to her.', [("he", 2, "#")], 'She said "# he # is" to her.'),
        ("the dog of Ann ran", [("the dog of Ann", 0, "*"), ("Ann", 3, "#")], "* the dog of # Ann # * ran"),
        ("Ann's dog saw Ann", [("Ann", 0, "#"), ("Ann's dog", 0, "*")], "* # Ann #'s dog * saw Ann"),
        ("the  sack of\nflour", [("sack of flour.", 1, "*")], "the  * sack of\nflour *"),
        ("use it , for use", [("it", 0, "#")], "use # it # , for use"),
        ("no such word", [("dog", 1, "*")], "no such word"),
    ],
)
def test_spans_are_marked_at_the_nearest_place(text: str, spans: list[tuple[str, int, str]], marked: str) -> None:
    assert mark_spans(text, spans) == marked


def test_the_settings_are_those_of_dept() -> None:
    found = {name: load_settings({"task": name}, []).task for name in NAMES}
    assert {name: one.max_text_length for name, one in found.items()} == {
        **dict.fromkeys(("boolq", "cb", "wic", "wsc"), 256),
        "multirc": 348,
        "record": 512,
    }
    assert {name: one.selection_metric for name, one in found.items()} == {
        **dict.fromkeys(("boolq", "wic", "wsc"), "accuracy"),
        "cb": "f1_macro",
        "multirc": "f1_a",
        "record": "exact_match",
    }


def t5_mark(text: str, span: str, index: int, mark: str) -> str:
    """T5's way, which finds a span only where index and spelling are right."""
    pattern = rf"^((?:\S+\s){{{index}}})({re.escape(span)})"
    return re.sub(pattern, rf"\1{mark} \2 {mark}", text)


@pytest.mark.shared
def test_real_files_are_read_scored_and_written_again(shared: Path, tmp_path: Path) -> None:
    counts = {"boolq": ("BoolQ", 3270), "cb": ("CB", 56), "wic": ("WiC", 638), "wsc": ("WSC", 104)}
    for name, (folder, count) in {**counts, "multirc": ("MultiRC", 4848)}.items():
        path = shared / "data" / "superglue" / folder / "val.jsonl"
        task = make(name)
        examples = task.read(path.parent, "official-validation")
        assert len(examples) == count
        halves = [task.read(path.parent, split) for split in ("validation", "test")]
        assert [len(half) for half in halves] == [count // 2, count - count // 2]
        source, labels = random.Random(0), list(TASKS[name].form.labels)
        predictions = [Prediction(one.example_id, source.choice(labels)) for one in examples]
        task.submit(predictions, tmp_path / folder)
        assert task.check_submission(tmp_path / folder, path) == []
        scores = score_files(task, tmp_path / folder, OfficialFiles(path))
        assert scores == task.score(predictions, examples)
        check_scores(task, predictions, examples)
        if name == "multirc":
            assert len({one.example_id.rpartition("-")[0] for one in examples}) == 953


@pytest.mark.shared
def test_real_training_files_have_the_labels_of_few_glue(shared: Path) -> None:
    for name, folder, count in (("boolq", "BoolQ", 32), ("cb", "CB", 32), ("wic", "WiC", 32), ("wsc", "WSC", 32)):
        examples = make(name).read(shared / "data" / "superglue" / "fewglue" / folder, "train")
        assert len(examples) == count
        assert all(one.references for one in examples)
    wic, few = (make("wic").read(shared / "data" / "superglue" / place, "train") for place in ("WiC", "fewglue/WiC"))
    known = {one.text: one.references for one in wic}
    assert all(known[one.text] == one.references for one in few)
    record = make("record").read(shared / "data" / "superglue" / "fewglue" / "ReCoRD", "official-train")
    assert len(record) == 32
    entities = {one.example_id: one.text.partition(" passage: ")[0] for one in record}
    assert all(answer in entities[one.example_id] for one in record for answer in one.references)


@pytest.mark.shared
def test_every_span_of_the_real_wsc_is_marked_and_where_t5_marks_it_alike(shared: Path) -> None:
    equal = 0
    for place in ("WSC/val.jsonl", "fewglue/WSC/train.jsonl"):
        for row in rows(shared / "data" / "superglue" / place):
            target = row["target"]
            spans = [(target[f"span{n}_text"], target[f"span{n}_index"], mark) for n, mark in ((1, "*"), (2, "#"))]
            marked = mark_spans(row["text"], spans)
            assert marked.count("*") == marked.count("#") == 2
            (span1, index1, _), (span2, index2, _) = spans
            ours = t5_mark(row["text"], span1, index1, "*")
            ours = t5_mark(ours, span2, index2 + 2 * (index1 < index2), "#")
            if ours.count("#") == ours.count("*") == 2:
                assert marked == ours
                equal += 1
    assert equal == 120  # of 136; T5 misses the others
