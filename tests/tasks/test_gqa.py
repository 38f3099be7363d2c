from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.config import load_settings
from dept_vl.metrics.gqa import Annotation, Choices
from dept_vl.settings import TaskSettings
from dept_vl.tasks.gqa import build
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "gqa"
SPLITS = {
    "train": "train_balanced",
    "both": "train_balanced+val_balanced",
    "validation": "val_balanced",
    "all": "val_all",
    "testdev": "testdev_balanced",
    "test": "submission_all",
    "lxmert": "valid",
}
VALIDATION, ALL, TEST = (f"{name}_questions.json" for name in ("val_balanced", "val_all", "submission_all"))
ANSWERS = {
    "05451384": "yes",  # right; of the two that it entails, the first is wrong
    "05451385": "no",
    "05451386": "cup",
    "00524510": "brown",  # right, and so is what it entails
    "00524511": "yes",
    "181085757": "color",  # wrong, but something that things may have in common
    "17320472": "purple",  # wrong, valid, and not plausible
    "17320473": "walking",  # right; it entails itself only
}
LXMERT = [
    {"question_id": "05451384", "img_id": "2382986", "sent": "Are there any cups?", "label": {"yes": 1.0}},
    {"question_id": "00524510", "img_id": "2382986", "sent": "Which color is the tray?", "label": {"brown": 1.0}},
]


@pytest.fixture
def task() -> Task:
    return build(TaskSettings(name="gqa", module="gqa", splits=SPLITS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TOY_DATA, tmp_path / "gqa")


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def example(examples: list[Example], example_id: str) -> Example:
    return next(one for one in examples if one.example_id == example_id)


def predictions(answers: dict[str, str]) -> list[Prediction]:
    return list(map(Prediction._make, answers.items()))


# Reading


def test_the_settings_build_the_task() -> None:
    settings = load_settings({"task": "gqa"}, []).task
    task = load_task(settings)
    assert (task.name, task.file_options, task.ignores_unknown) == ("gqa", ("choices",), True)
    for split, count in {"train": 6, "validation": 5, "testdev": 4, "test": 5}.items():
        assert len(task.read(TOY_DATA, split)) == count


def test_an_example_has_the_question_as_it_stands_its_image_and_its_answer(task: Task) -> None:
    pipe = example(task.read(TOY_DATA, "train"), "07333408")
    assert pipe.text == "What is on the white wall?"
    assert pipe.image_ids == ("2375429",)
    assert pipe.references == ("pipe",)
    assert pipe.targets == (Target("pipe", 1.0),)
    assert pipe.slices == {"structural": "query", "semantic": "rel"}


def test_the_facts_of_a_balanced_question_are_what_the_score_needs(task: Task) -> None:
    assert example(task.read(TOY_DATA, "all"), "05451384").facts == Annotation(
        answer="yes",
        words=10,
        steps=2,
        structural="verify",
        semantic="rel",
        detailed="existRelS",
        group=None,
        entailed=("05451384", "05451385", "05451386"),
        choices=Choices(("yes", "no"), ("yes", "no")),
    )


def test_of_a_question_outside_the_balanced_set_the_answer_is_kept_and_held_once(task: Task) -> None:
    examples = task.read(TOY_DATA, "all")
    first, second = (example(examples, one).facts for one in ("05451385", "00524511"))
    assert first is second
    assert first == Annotation("yes", balanced=False)


def test_ids_keep_their_zeros_and_the_order_of_the_file(task: Task) -> None:
    assert [one.example_id for one in task.read(TOY_DATA, "all")] == list(ANSWERS)


def test_a_test_split_has_neither_answers_nor_facts(task: Task) -> None:
    examples = task.read(TOY_DATA, "test")
    assert [one.image_ids for one in examples][:3] == [("n336443",)] * 3
    assert all((one.references, one.targets, one.slices, one.facts) == ((), (), {}, None) for one in examples)


def test_sources_can_be_joined(task: Task) -> None:
    assert task.read(TOY_DATA, "both") == task.read(TOY_DATA, "train") + task.read(TOY_DATA, "validation")


def test_the_parts_of_a_large_file_are_its_questions(task: Task, folder: Path) -> None:
    expected = task.read(folder, "all")
    (folder / "val_all_questions").mkdir()
    rows = list(json.loads((folder / ALL).read_text()).items())
    (folder / "val_all_questions" / "val_all_questions_0.json").write_text(json.dumps(dict(rows[:3])))
    (folder / "val_all_questions" / "val_all_questions_1.json").write_text(json.dumps(dict(rows[3:])))
    (folder / ALL).unlink()
    assert task.read(folder, "all") == expected


def test_splits_to_train_on_are_read_without_choices(task: Task, folder: Path) -> None:
    (folder / "train_choices.json").write_text("neither read nor checked")
    assert task.read(folder, "train") == task.read(TOY_DATA, "train")


def test_choices_are_used_where_they_lie_beside_the_questions_of_their_tier(task: Task, folder: Path) -> None:
    def chosen(split: str) -> set[bool]:
        facts = [one.facts for one in task.read(folder, split)]
        return {isinstance(one, Annotation) and one.choices is not None for one in facts}

    assert chosen("validation") == {True}
    assert chosen("train") == chosen("testdev") == {False}
    (folder / "val_choices.json").unlink()
    assert chosen("validation") == {False}


def test_the_files_themselves_can_be_read(task: Task) -> None:
    expected = task.read(TOY_DATA, "all")
    assert task.read_files(OfficialFiles(TOY_DATA / ALL, choices=TOY_DATA / "val_choices.json")) == expected
    assert [one.references for one in task.read_files(OfficialFiles(TOY_DATA / ALL))] == [
        one.references for one in expected
    ]


def test_a_file_of_lxmert_has_questions_and_answers_but_no_types(task: Task, tmp_path: Path) -> None:
    (tmp_path / "valid.json").write_text(json.dumps(LXMERT))
    examples = task.read(tmp_path, "lxmert")
    assert examples[0] == Example(
        example_id="05451384",
        text="Are there any cups?",
        image_ids=("2382986",),
        references=("yes",),
        targets=examples[0].targets,
        facts=Annotation("yes", words=4),
    )
    assert examples[0].targets == (Target("yes", 1.0),)
    assert task.read_files(OfficialFiles(tmp_path / "valid.json")) == examples


def test_a_file_of_lxmert_may_withhold_the_answers(task: Task, tmp_path: Path) -> None:
    rows = [{key: row[key] for key in row if key != "label"} for row in LXMERT]
    (tmp_path / "valid.json").write_text(json.dumps(rows))
    assert [(one.references, one.targets, one.facts) for one in task.read(tmp_path, "lxmert")] == [((), (), None)] * 2


def test_a_record_of_lxmert_has_exactly_one_answer(task: Task, tmp_path: Path) -> None:
    rows = [LXMERT[0] | {"label": {}}, LXMERT[1] | {"label": {"brown": 1.0, "red": 1.0}}, {**LXMERT[1]}]
    rows[2]["question_id"] = "3"
    (tmp_path / "valid.json").write_text(json.dumps(rows))
    with pytest.raises(InputDataError, match=re.escape('"label" is not {answer: 1.0}: 2 (05451384, 00524510)')):
        task.read(tmp_path, "lxmert")


def test_own_data_may_lack_a_semantic_type(task: Task, folder: Path) -> None:
    change(folder / "testdev_balanced_questions.json", lambda rows: rows["201307251"]["types"].update(semantic=""))
    examples = task.read(folder, "testdev")
    assert examples[0].slices == {"structural": "verify"}
    metrics = task.score([Prediction(one.example_id, "no") for one in examples], examples).metrics
    assert {name for name in metrics if name.startswith("per_semantic")} == {"per_semantic/rel", "per_semantic/attr"}


# What is refused


def test_absent_files_are_named_with_what_is_there(task: Task, tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text("{}")
    message = (
        f"{tmp_path} has no train_balanced_questions.json, no folder train_balanced_questions of its parts, and no "
        "train_balanced.json of LXMERT. JSON files there: questions.json. Put the official file there, or set "
        f"task.splits.both to the name in yours; {tmp_path} has no val_balanced_questions.json"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(tmp_path, "both")
    with pytest.raises(InputDataError, match="JSON files there: none"):
        task.read(tmp_path / "none", "train")


def test_the_faults_of_all_files_are_named_at_once(task: Task, folder: Path) -> None:
    change(folder / "train_balanced_questions.json", lambda rows: rows["02930152"].update(question=None))
    (folder / VALIDATION).write_text("{")
    change(folder / "val_choices.json", lambda rows: rows.update({"05451384": {"valid": ["yes", 1], "plausible": []}}))
    with pytest.raises(InputDataError) as caught:
        task.read(folder, "both")
    choices, train, validation = str(caught.value).split("; ")
    assert choices == (
        f'{folder / "val_choices.json"}: choices that are not {{"valid": [text, ...], "plausible": [text, ...]}}: '
        "1 (05451384)"
    )
    train_file = folder / "train_balanced_questions.json"
    assert train == f'{train_file}: "question" is null, not text: 1 (02930152)'
    assert validation.startswith(f"{folder / VALIDATION} is not one JSON value in UTF-8")


def test_the_faults_of_given_files_are_named_at_once(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No file .*c.json. Check the path; No file .*q.json. Check the path"):
        task.read_files(OfficialFiles(tmp_path / "q.json", choices=tmp_path / "c.json"))


def test_all_wrong_questions_are_named_at_once(task: Task, folder: Path) -> None:
    def edit(rows: Any) -> None:
        first, second, third, fourth, *_ = rows.values()
        del first["answer"]
        second["isBalanced"] = 1
        second["imageId"] = 2375429
        third["types"]["detailed"] = None
        del fourth["groups"]["global"]
        fourth["entailed"] = [15736264]
        fourth["semantic"][0] = {"operation": "select"}
        rows["9"] = [1]

    change(folder / "train_balanced_questions.json", edit)
    wanted = "question, imageId, answer, isBalanced, types, groups, entailed, semantic"
    message = (
        'no "answer": 1 (02930152); "imageId" is a whole number, not text: 1 (07333408); '
        '"isBalanced" is a whole number, not a boolean: 1 (07333408); '
        '"detailed" is null, not text: 1 (types of 07333405); '
        '"groups" has no "global" that is text or null: 1 (15736264); '
        '"entailed" is not a list of ids as texts: 1 (15736264); '
        '"semantic" is not a list of {"operation": ..., "argument": ..., ...}: 1 (15736264); '
        f"a list instead of an object with {wanted}: 1 (9)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "train")


def test_what_no_question_of_a_file_has_makes_its_figures_null(task: Task, tmp_path: Path) -> None:
    rows = json.loads((TOY_DATA / ALL).read_text())
    answers = [Prediction(one, row["answer"]) for one, row in rows.items()]
    full = task.score(answers, task.read_files(OfficialFiles(TOY_DATA / ALL))).metrics
    bare = tmp_path / "questions.json"
    bare.write_text(json.dumps({one: {"answer": row["answer"]} for one, row in rows.items() if row["isBalanced"]}))
    examples = task.read_files(OfficialFiles(bare))
    scores = task.score([one for one in answers if rows[one.example_id]["isBalanced"]], examples)
    assert full["binary"] == full["consistency"] == scores.metrics["accuracy"] == 100
    nulls = ("binary", "open", "consistency", "validity", "plausibility", "distribution")
    assert {name for name in nulls if scores.metrics[name] is None and scores.reasons[name]} == set(nulls)


def test_what_other_questions_of_a_file_have_is_missed(task: Task, tmp_path: Path) -> None:
    rows = json.loads((TOY_DATA / ALL).read_text())
    del rows["05451384"]["types"]["detailed"], rows["17320472"]["entailed"]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    message = 'no "detailed": 1 (types of 05451384); no "entailed": 1 (17320472)'
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read_files(OfficialFiles(tmp_path / "questions.json"))


def test_a_wrong_question_of_a_test_split_is_refused(task: Task, folder: Path) -> None:
    change(folder / TEST, lambda rows: rows["00100001"].pop("imageId"))
    with pytest.raises(InputDataError, match=re.escape('no "imageId": 1 (00100001)')):
        task.read(folder, "test")


@pytest.mark.parametrize(("content", "held"), [("{}", "no question"), ('"x"', "text"), ("3", "a whole number")])
def test_a_file_without_questions_is_refused(task: Task, folder: Path, content: str, held: str) -> None:
    (folder / VALIDATION).write_text(content)
    message = f'{VALIDATION} holds {held}. A questions file is {{"05451384": {{"question": "Is it red?", "imageId": '
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


@pytest.mark.parametrize(("content", "held"), [("{}", "no choices"), ("[]", "a list")])
def test_a_file_without_choices_is_refused(task: Task, folder: Path, content: str, held: str) -> None:
    (folder / "val_choices.json").write_text(content)
    message = f'val_choices.json holds {held}. A file of choices is {{"05451384": {{"valid": ["yes", "no"], "plausibl'
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


@pytest.mark.parametrize("wrong", [None, ["yes"], {"valid": ["yes"]}, {"valid": "yes", "plausible": "yes"}])
def test_wrong_choices_are_refused(task: Task, folder: Path, wrong: object) -> None:
    change(folder / "val_choices.json", lambda rows: rows.update({"00524511": wrong}))
    message = 'choices that are not {"valid": [text, ...], "plausible": [text, ...]}: 1 (00524511)'
    with pytest.raises(InputDataError, match=re.escape(message) + "$"):  # and not that questions lack choices
        task.read(folder, "all")


def test_balanced_questions_need_choices_if_there_is_a_file_of_these(task: Task, folder: Path) -> None:
    def edit(rows: Any) -> None:
        del rows["17320472"]
        del rows["05451385"]  # not balanced

    change(folder / "val_choices.json", edit)
    message = f"{ALL}: balanced questions without choices in the file of these: 1 (17320472)"
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "all")


def test_a_question_in_two_files_is_refused(folder: Path) -> None:
    task = build(TaskSettings(splits={"train": "val_all+val_balanced"}))
    message = f"{folder}: ids that are in more than one file of val_all+val_balanced: 5 (05451384, 00524510, 18"
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "train")


# Scoring


def test_parse_lowers_and_strips(task: Task) -> None:
    assert task.parse(" Fire Truck\n") == "fire truck"


def test_scores_are_the_official_ones(task: Task) -> None:
    scores = task.score(predictions(ANSWERS), task.read(TOY_DATA, "all"))
    low, high = scores.metrics.pop("ci_low"), scores.metrics.pop("ci_high")
    assert scores.metrics == pytest.approx(
        {
            "accuracy": 60,
            "binary": 200 / 3,
            "open": 50,
            "consistency": 75,
            "validity": 100,
            "plausibility": 80,
            "distribution": 2 / 3 / 100,
            "per_structural/choose": 100,
            "per_structural/compare": 0,
            "per_structural/query": 50,
            "per_structural/verify": 100,
            "per_semantic/attr": 50,
            "per_semantic/rel": 100,
            "per_steps/2": 200 / 3,
            "per_steps/3": 50,
            "per_words/5": 50,
            "per_words/9": 100,
            "per_words/10": 50,
            "n": 8,
        }
    )
    assert (low, high) == (20, 100)
    assert scores.reasons == {}
    wrong = {"05451385", "181085757", "17320472"}
    assert scores.per_example == {one: float(one not in wrong) for one in ANSWERS}


def test_balanced_questions_alone_have_no_consistency(task: Task) -> None:
    examples = task.read(TOY_DATA, "validation")
    scores = task.score(predictions({one.example_id: ANSWERS[one.example_id] for one in examples}), examples)
    assert scores.metrics["accuracy"] == 60
    assert scores.metrics["consistency"] is None
    assert scores.reasons["consistency"].startswith("3 entailed questions are not among the 5 questions; it takes ")


def test_testdev_has_neither_validity_nor_plausibility(task: Task) -> None:
    examples = task.read(TOY_DATA, "testdev")
    scores = task.score([Prediction(one.example_id, "large") for one in examples], examples)
    assert scores.metrics["accuracy"] == 25
    assert set(scores.reasons) == {"consistency", "validity", "plausibility"}
    assert scores.reasons["validity"] == "4 of 4 balanced questions have no choices, as val_choices.json gives them"


def test_withheld_answers_give_no_score_but_the_count(task: Task) -> None:
    examples = task.read(TOY_DATA, "test")
    scores = task.score([Prediction(one.example_id, "yes") for one in examples], examples)
    assert scores.per_example == {}
    assert scores.metrics.pop("n") == 5
    assert set(scores.metrics.values()) == {None}
    assert {"accuracy", "consistency", "distribution", "ci_low"} < set(scores.metrics)
    assert set(scores.reasons.values()) == {"the answers are withheld"}


def test_a_file_of_lxmert_gives_the_accuracy(task: Task, tmp_path: Path) -> None:
    (tmp_path / "valid.json").write_text(json.dumps(LXMERT))
    examples = task.read(tmp_path, "lxmert")
    scores = task.score(predictions({"05451384": "yes", "00524510": "red"}), examples)
    assert scores.metrics["accuracy"] == 50
    assert set(scores.reasons) == {"binary", "open", "consistency", "validity", "plausibility", "distribution"}


def test_the_order_of_predictions_and_unknown_ids_make_no_difference(task: Task) -> None:
    examples = task.read(TOY_DATA, "all")
    expected = task.score(predictions(ANSWERS), examples)
    assert task.score([Prediction("1", "yes"), *predictions(ANSWERS)[::-1]], examples) == expected


# Results files


def test_a_submission_is_the_official_list_of_ids_as_texts(task: Task, tmp_path: Path) -> None:
    answers = [Prediction("05451384", "yes"), Prediction("201307251", 'caf\u00e9 "x"')]
    task.submit(answers, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_bytes()) == [
        {"questionId": "05451384", "prediction": "yes"},
        {"questionId": "201307251", "prediction": 'caf\u00e9 "x"'},
    ]
    assert task.read_submission(tmp_path / "results.json") == answers
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_submission_with_whole_numbers_as_ids_is_refused(task: Task, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('[{"questionId": 5451384, "prediction": "yes"}, {"questionId": "1"}]')
    message = 'results.json: "questionId" is a whole number, not text: 1 (row 0); no "prediction": 1 (row 1)'
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read_submission(tmp_path / "results.json")


def test_a_submission_that_is_no_list_is_refused(task: Task, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"05451384": "yes"}')
    message = 'holds an object, not a list. A results file is [{"questionId": "05451384", "prediction": "yes"}, ...]'
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read_submission(tmp_path / "results.json")


@pytest.mark.parametrize("split", ["validation", "all", "testdev", "test"])
def test_our_own_submission_has_no_fault(task: Task, tmp_path: Path, split: str) -> None:
    task.submit([Prediction(one.example_id, "yes") for one in task.read(TOY_DATA, split)], tmp_path / "results.json")
    assert task.check_submission(tmp_path / "results.json", TOY_DATA / f"{SPLITS[split]}_questions.json") == []
    assert task.check_submission(tmp_path / "results.json", None) == []


def test_ids_that_are_not_those_of_the_questions_are_faults(task: Task, tmp_path: Path) -> None:
    task.submit([Prediction("00100001", "yes"), Prediction("05451384", "no")], tmp_path / "results.json")
    assert task.check_submission(tmp_path / "results.json", None) == []
    missing, extra = task.check_submission(tmp_path / "results.json", TOY_DATA / TEST)
    assert missing.startswith("missing ids: 4 (201971873, 201999999, 202140080, 20446810)")
    assert extra.startswith("ids that the questions do not have: 1 (05451384)")


def test_a_submission_for_a_part_of_the_questions_is_told_which_the_server_wants(task: Task, tmp_path: Path) -> None:
    task.submit([Prediction("00100001", "yes")], tmp_path / "results.json")
    (fault,) = task.check_submission(tmp_path / "results.json", TOY_DATA / TEST)
    assert fault.startswith("missing ids: 4 (")
    assert "The server wants all questions of submission_all_questions.json, of test and challenge together" in fault


def test_capitals_and_whole_number_ids_are_faults(task: Task, tmp_path: Path) -> None:
    rows = [{"questionId": "00100001", "prediction": "Yes"}, {"questionId": 201971873, "prediction": "sitting"}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    faults = task.check_submission(tmp_path / "results.json", None)
    assert any("capitals" in fault and "00100001" in fault for fault in faults)
    assert any('"questionId" is a whole number, not text: 1 (row 1)' in fault for fault in faults)


def test_a_submission_is_checked_against_questions_only(task: Task, tmp_path: Path) -> None:
    task.submit([Prediction("00100001", "yes")], tmp_path / "results.json")
    with pytest.raises(InputDataError, match=r"results.json holds a list\. A questions file is"):
        task.check_submission(tmp_path / "results.json", tmp_path / "results.json")


def test_results_files_are_named_after_the_official_questions(task: Task) -> None:
    assert task.submission_name("test") == "gqa_submission_all_dept_results.json"
    assert task.submission_name("testdev") == "gqa_testdev_balanced_dept_results.json"
