from __future__ import annotations

import gzip
import json
import re
import shutil
import string
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dept_vl.config import load_settings
from dept_vl.leaderboard import score_files
from dept_vl.tasks.reading import HUB, MRQA_FILES, pad_punctuation
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError, UsageError

TOY_DATA = Path(__file__).parents[1] / "toy_data"
SQUAD = TOY_DATA / "squad"
DEV = SQUAD / "dev-v1.1.json"


def make(name: str, *overrides: str) -> Task:
    return load_task(load_settings({"task": name}, list(overrides)).task)


def best(examples: list[Example]) -> list[Prediction]:
    return [Prediction(one.example_id, one.references[-1]) for one in examples]


def test_a_question_comes_before_its_context_and_every_distinct_answer_is_a_target() -> None:
    first = make("squad").read(SQUAD, "test")[0]
    assert first.text == (
        "question: How many dogs are there in part 0? context: The Town of Łódź-10 has 2,000 dogs. Its tower (made by "
        "Ann Lee) is green."
    )
    assert first.references == ("2,000", "2,000 dogs")
    assert first.targets == (Target("2,000", 1.0), Target("2,000 dogs", 1.0))
    assert first.image_ids == ()


def test_both_templates_are_the_same() -> None:
    assert make("squad", "task.template=t5").read(SQUAD, "test") == make("squad").read(SQUAD, "test")


def test_legacy_puts_spaces_around_punctuation_and_takes_squad_s_whole_record_for_the_answer() -> None:
    first = make("squad", "task.legacy=true").read(SQUAD, "test")[0]
    assert first.text == (
        "question: How many dogs are there in part 0 ?  context: The Town of Łódź - 10 has 2 , 000 dogs . Its tower ( "
        "made by Ann Lee ) is green . "
    )
    record = "{ ' text ' : [ ' 2 , 000 ' , ' 2 , 000 dogs ' , ' 2 , 000 ' ] , ' answer_start ' : [ 24 , 24 , 24 ] }"
    assert first.references == (record,)
    assert first.targets == (Target(record, 1.0),)


def test_legacy_takes_mrqa_s_first_answer_only() -> None:
    example = make("nq", "task.legacy=true").read(TOY_DATA / "nq", "test")[0]
    assert example.references == ("Ann Lee",)
    assert example.targets == (Target("Ann Lee", 1.0),)
    assert make("nq").read(TOY_DATA / "nq", "test")[0].references == ("Ann Lee", "Lee")


@pytest.mark.parametrize("name", MRQA_FILES)
def test_mrqa_is_read_where_its_script_puts_it_and_beside_packed_or_not(name: str, tmp_path: Path) -> None:
    task = make(name)
    (official,) = (TOY_DATA / name / "dev").iterdir()
    assert official.name.split(".")[0] == MRQA_FILES[name]
    expected = task.read(TOY_DATA / name, "test")
    shutil.copy(official, tmp_path / official.name.replace(MRQA_FILES[name], "dev"))
    assert task.read(tmp_path, "test") == expected
    assert task.read_files(OfficialFiles(official)) == expected


def test_absent_files_are_named(tmp_path: Path) -> None:
    message = (
        f"{tmp_path} has no dev.jsonl.gz and no dev.jsonl and no dev/HotpotQA.jsonl.gz and no dev/HotpotQA.jsonl and "
        "no validation.rows.jsonl. Files there: none"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        make("hotpotqa").read(tmp_path, "test")
    with pytest.raises(InputDataError, match=r"has no dev-v1.1.json and no validation.rows.jsonl"):
        make("squad").read(tmp_path, "test")


def test_the_hub_s_rows_are_read_where_there_is_no_official_file(tmp_path: Path) -> None:
    answers = {"text": ["Łódź", "Łódź"], "answer_start": [0, 0]}
    row = {"id": "a", "title": "Towns", "context": "Łódź is here.", "question": "What?", "answers": answers}
    (tmp_path / "validation.rows.jsonl").write_text(json.dumps(row))
    expected = Example("a", "question: What? context: Łódź is here.", (), ("Łódź",), (Target("Łódź", 1.0),))
    assert make("squad").read(tmp_path, "test") == [expected]
    assert set(HUB) == {*MRQA_FILES, "squad"}


def test_dept_s_parts_are_of_questions_and_others_of_articles() -> None:
    names = {"rest": "train-v1.1/rest", "held": "train-v1.1/held_out", "all": "train-v1.1"}
    names |= {f"{half}": f"train-v1.1/{half}_half_of_articles" for half in ("first", "second")}
    names |= {"quarter": "train-v1.1/second_half_of_articles/first_half"}
    task = make("squad", *(f"task.splits.{split}={source}" for split, source in names.items()))
    parts = {split: task.read(SQUAD, split) for split in names}
    ids = {split: {one.example_id for one in examples} for split, examples in parts.items()}
    assert len(ids["rest"]) == len(ids["held"]) == 4
    assert ids["rest"] | ids["held"] == ids["first"] | ids["second"] == ids["all"]
    towns = {split: {re.findall(r"Town of (\S+)", one.text)[0] for one in parts[split]} for split in parts}
    assert len(towns["first"]) == len(towns["second"]) == 1
    assert towns["first"] != towns["second"]
    assert len(towns["held"]) == 2
    assert ids["quarter"] < ids["second"]


def test_an_article_of_mrqa_is_a_context() -> None:
    task = make("nq", "task.splits.a=train/first_half_of_articles", "task.splits.b=train/second_half_of_articles")
    contexts = [{one.text.partition(" context: ")[2] for one in task.read(TOY_DATA / "nq", split)} for split in "ab"]
    assert not contexts[0] & contexts[1]


def test_unknown_parts_are_refused() -> None:
    for part in ("firsthalf", "first_half/all", "x_of_articles"):
        with pytest.raises(UsageError, match=r"is no part of a file"):
            make("squad", f"task.splits.a=train-v1.1/{part}").read(SQUAD, "a")


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    content = json.loads(DEV.read_text())
    asked = content["data"][0]["paragraphs"][0]["qas"]
    asked.append(asked[0])
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps(content))
    message = f"{path}: more than one question with the same id: 1 ({asked[0]['id']})"
    with pytest.raises(InputDataError, match=re.escape(message)):
        make("squad").read(tmp_path, "test")
    with pytest.raises(InputDataError, match=re.escape(message)):
        make("squad").read_files(OfficialFiles(path))


def test_any_accepted_answer_is_right() -> None:
    task = make("nq")
    examples = task.read(TOY_DATA / "nq", "test")
    assert task.score(best(examples), examples).metrics["exact_match"] == 100
    answers = [Prediction(one.example_id, f"The {one.references[0].upper()}!") for one in examples]
    scores = task.score(answers, examples)
    assert (scores.metrics["exact_match"], scores.metrics["f1"], scores.metrics["n"]) == (100, 100, 4)
    assert set(scores.per_example.values()) == {1}


def test_a_submission_is_one_json_object_and_comes_back(tmp_path: Path) -> None:
    task = make("squad")
    examples = task.read(SQUAD, "test")
    path = tmp_path / task.submission_name("test")
    assert path.name == "squad_dev-v1.1_predictions.json"
    assert task.submission_name("validation") == "squad_train-v1.1_held_out_predictions.json"
    task.submit(best(examples), path)
    assert json.loads(path.read_text()) == dict(best(examples))
    assert task.read_submission(path) == best(examples)
    assert task.check_submission(path, DEV) == task.check_submission(path, None) == []
    assert score_files(task, path, OfficialFiles(DEV)) == task.score(best(examples), examples)


def test_predictions_for_other_questions_are_ignored_but_missing_ones_refused(tmp_path: Path) -> None:
    task = make("squad")
    examples = task.read(SQUAD, "test")
    path = tmp_path / "predictions.json"
    task.submit([*best(examples), Prediction("other", "x")], path)
    assert score_files(task, path, OfficialFiles(DEV)).metrics["exact_match"] == 100
    task.submit(best(examples)[1:], path)
    with pytest.raises(InputDataError, match=rf"missing ids: 1 \({examples[0].example_id}\)"):
        score_files(task, path, OfficialFiles(DEV))
    (fault,) = task.check_submission(path, DEV)
    assert fault.startswith(f"missing ids: 1 ({examples[0].example_id}); it answers only 3 of 4 questions.")


def test_a_generated_text_is_the_answer() -> None:
    task = make("nq")
    assert task.parse("  Ann Lee\n") == "Ann Lee"
    assert task.labels == ()


@pytest.mark.parametrize(
    ("text", "padded"),
    [
        ("Who made it?", "Who made it ? "),
        ("a_b 1,000 x²", "a_b 1 , 000 x²"),
        ("François\tis\nhere…", "François is here … "),
        ("e\u0301 — “x”", "e\u0301 — “ x ” "),
    ],
)
def test_punctuation_is_set_apart_as_in_t5(text: str, padded: str) -> None:
    assert pad_punctuation(text) == padded


def test_all_but_letters_marks_digits_and_underscores_are_set_apart() -> None:
    for character in map(chr, range(sys.maxunicode + 1)):
        kept = unicodedata.category(character)[0] in "LMN" or character == "_"
        if not character.isspace() and unicodedata.category(character) not in ("Cn", "Cs"):
            assert (pad_punctuation(character) == character) == kept, hex(ord(character))


def test_the_settings_are_those_of_dept() -> None:
    for name in HUB:
        settings = load_settings({"task": name}, []).task
        assert (settings.max_text_length, settings.max_target_length) == (512, 20)
        assert settings.selection_metric == "exact_match"
        assert make(name).ignores_unknown


@pytest.mark.shared
def test_real_xquad_is_read_by_articles_scored_and_written_again(shared: Path, tmp_path: Path) -> None:
    folder, second = shared / "data" / "xquad", "xquad.en/second_half_of_articles"
    names = {"train": "xquad.en/first_half_of_articles", "validation": f"{second}/first_half_of_articles"}
    names |= {"test": f"{second}/second_half_of_articles", "all": "xquad.en"}
    task = make("squad", *(f"task.splits.{split}={source}" for split, source in names.items()))
    parts = {split: task.read(folder, split) for split in names}
    assert {split: len(examples) for split, examples in parts.items()} == {
        "train": 628,
        "validation": 286,
        "test": 276,
        "all": 1190,
    }
    contexts = {split: {one.text.partition(" context: ")[2] for one in parts[split]} for split in parts}
    assert not contexts["train"] & contexts["test"]
    assert not contexts["train"] & contexts["validation"]
    assert not contexts["validation"] & contexts["test"]
    assert len(contexts["all"]) == 240
    assert all(any(answer in one.text for answer in one.references) for one in parts["all"])
    task.submit(best(parts["all"]), tmp_path / "predictions.json")
    official = folder / "xquad.en.json"
    assert task.check_submission(tmp_path / "predictions.json", official) == []
    metrics = score_files(task, tmp_path / "predictions.json", OfficialFiles(official)).metrics
    assert metrics["exact_match"] == 100


def words_of(text: str) -> list[str]:
    """As in SQuAD's and MRQA's scripts."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def script_f1(answer: str, reference: str) -> float:
    given, wanted = words_of(answer), words_of(reference)
    same = sum((Counter(given) & Counter(wanted)).values())
    precision, recall = same / max(len(given), 1), same / max(len(wanted), 1)
    return 2 * precision * recall / (precision + recall) if same else 0


@pytest.mark.shared
def test_real_answers_score_as_by_the_scripts_whether_gold_is_squads_or_mrqas(shared: Path, tmp_path: Path) -> None:
    official = shared / "data" / "xquad" / "xquad.en.json"
    lines: list[dict[str, Any]] = [{"header": {"dataset": "XQuAD", "split": "dev"}}]
    answers, f1, matches = {}, [], []
    for paragraph in (one for article in json.loads(official.read_text())["data"] for one in article["paragraphs"]):
        asked = [
            {"qid": one["id"], "question": one["question"], "answers": [answer["text"] for answer in one["answers"]]}
            for one in paragraph["qas"]
        ]
        lines.append({"context": paragraph["context"], "qas": asked})
        for number, one in enumerate(asked):
            answer = one["answers"][0] + " indeed" * (number % 2) if number % 3 else paragraph["context"][:20]
            answers[one["qid"]] = answer
            f1.append(max(script_f1(answer, other) for other in one["answers"]))
            matches.append(any(words_of(answer) == words_of(other) for other in one["answers"]))
    (tmp_path / "predictions.json").write_text(json.dumps(answers))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "dev.jsonl").write_text(text)
    (tmp_path / "dev.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name, gold in (("squad", official), ("nq", tmp_path / "dev.jsonl"), ("nq", tmp_path / "dev.jsonl.gz")):
        metrics = score_files(make(name), tmp_path / "predictions.json", OfficialFiles(gold)).metrics
        assert metrics["n"] == 1190
        assert metrics["f1"] == pytest.approx(100 * sum(f1) / 1190)
        assert metrics["exact_match"] == pytest.approx(100 * sum(matches) / 1190)
