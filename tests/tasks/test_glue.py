from __future__ import annotations

import json
import random
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dept_vl.config import load_settings
from dept_vl.evaluate import main as evaluate
from dept_vl.formats.rows import read_rows
from dept_vl.leaderboard import score_files
from dept_vl.tasks.glue import HUB, MEMBERS, SERVER_FILES
from dept_vl.tasks.splits import split_source
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data"
TASKS = tuple(MEMBERS)
NLI = ("entailment", "not_entailment")


def load(name: str, *changes: str) -> Task:
    return load_task(load_settings({"task": name}, [f"task.{change}" for change in changes]).task)


def splits_of(name: str) -> dict[str, str]:
    return load_settings({"task": name}, []).task.splits


def answer(examples: list[Example], seed: int = 0, others: tuple[str, ...] = ()) -> list[Prediction]:
    """One of the examples' labels for each, in any order."""
    choose = random.Random(seed)
    labels = [*sorted({one.references[0] for one in examples}), *others]
    predictions = [Prediction(one.example_id, choose.choice(labels)) for one in examples]
    choose.shuffle(predictions)
    return predictions


def write_hub_rows(name: str, folder: Path) -> None:
    """The toy data as the hub has it: numbers for labels, -1 where they are withheld, and scores of 32 bits."""
    member = MEMBERS[name]
    for path in (TOY_DATA / name).glob("*.tsv"):
        rows = read_rows(path, columns=member.bare, names=member.columns, drop_short=True).values()
        lines = []
        for row in rows:
            kept = {"idx": row["idx"], **{field: row[field] for field in member.fields}}
            if member.labels:
                names = {name: number for number, name in enumerate(member.labels)}
                kept["label"] = names[row["label"]] if "label" in row else -1
            else:
                kept["label"] = float(np.float32(row.get("label", -1)))
            lines.append(json.dumps(kept) + "\n")
        (folder / HUB[name].rows_file(path.stem)).write_text("".join(lines))


FIRST = {  # of the official validation
    "cola": ("sentence: A dog is red.", "cola sentence: A dog is red.", "1", "1", "acceptable"),
    "sst2": ("sentence: a joy to watch . ", "sst2 sentence: a joy to watch . ", "1", "1", "positive"),
    "mrpc": (
        "sentence1: The red team won . sentence2: Victory went to the red team .",
        "mrpc sentence1: The red team won . sentence2: Victory went to the red team .",
        *("1", "1", "equivalent"),
    ),
    "stsb": (
        "sentence1: A man sings. sentence2: A man is singing.",
        "stsb sentence1: A man sings. sentence2: A man is singing.",
        *("5.0", "5.0", "5.0"),
    ),
    "qqp": (
        "question1: How tall is he? question2: What is his height?",
        "qqp question1: How tall is he? question2: What is his height?",
        *("1", "1", "duplicate"),
    ),
    "mnli": (
        "premise: She eats an apple. hypothesis: She eats.",
        "mnli hypothesis: She eats. premise: She eats an apple.",
        *("entailment", "0", "entailment"),
    ),
    "qnli": (
        "question: How many cats are there? sentence: There are two cats.",
        "qnli question: How many cats are there? sentence: There are two cats.",
        *("entailment", "0", "entailment"),
    ),
    "rte": (
        "sentence1: Two birds sat on a wall. sentence2: Birds sat on a wall.",
        "rte sentence1: Two birds sat on a wall. sentence2: Birds sat on a wall.",
        *("entailment", "0", "entailment"),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_an_example_has_the_texts_and_label_of_depts_template_or_t5s(name: str) -> None:
    dept, t5, reference, digit, word = FIRST[name]
    for template, text, target in (("dept", dept, digit), ("t5", t5, word)):
        task = load(name, f"template={template}")
        example = task.read(TOY_DATA / name, "official-validation")[0]
        assert example == Example(
            example_id="0", text=text, image_ids=(), references=(reference,), targets=(Target(target, 1.0),)
        )
        assert target in task.labels
        assert float(task.parse(target)) == float(reference) if name == "stsb" else task.parse(target) == reference


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("changes", [(), ("template=t5",), ("legacy=true",)])
def test_every_target_is_a_label_that_means_the_reference(name: str, changes: tuple[str, ...]) -> None:
    task = load(name, *changes)
    for split in ("train", "validation", "test"):
        for example in task.read(TOY_DATA / name, split):
            assert example.targets[0].text in task.labels
            if name != "stsb":
                assert task.parse(f" {example.targets[0].text}\n") == example.references[0]


@pytest.mark.parametrize("name", TASKS)
def test_the_hubs_rows_give_the_same_examples(name: str, tmp_path: Path) -> None:
    task = load(name)
    write_hub_rows(name, tmp_path)
    for split in splits_of(name):
        if split != "labelled-test":
            assert task.read(tmp_path, split) == task.read(TOY_DATA / name, split)


@pytest.mark.parametrize("name", TASKS)
def test_the_hub_has_each_official_file(name: str) -> None:
    files = {split_source(text, split).file for split, text in splits_of(name).items()} - {"msr_paraphrase_test"}
    assert files == set(HUB[name].splits)
    assert (HUB[name].repository, HUB[name].config) == ("nyu-mll/glue", name)


@pytest.mark.parametrize("name", TASKS)
def test_a_test_without_labels_has_no_references_and_no_score(name: str) -> None:
    task = load(name)
    examples = task.read(TOY_DATA / name, "official-test")
    assert not any(one.references or one.targets for one in examples)
    scores = task.score([Prediction(one.example_id, "0") for one in examples], examples)
    assert scores.per_example == {}
    assert scores.metrics.pop("n") == len(examples)
    assert scores.metrics.pop("invalid") == (100 if name in ("mnli", "qnli", "rte") else 0)
    assert set(scores.metrics.values()) == {None}


def test_mrpc_has_a_labelled_test_in_its_own_file() -> None:
    task = load("mrpc")
    labelled, test = task.read(TOY_DATA / "mrpc", "labelled-test"), task.read(TOY_DATA / "mrpc", "official-test")
    assert [one.references for one in labelled] == [("1",), ("0",), ("1",)]
    assert [(one.example_id, one.text) for one in labelled] == [(one.example_id, one.text) for one in test]


def test_qqps_torn_rows_are_left_out_as_on_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    examples = load("qqp").read(TOY_DATA / "qqp", "official-train")
    assert [one.example_id for one in examples] == ["0", "1", "2", "3", "6", "7", "8", "9"]
    assert "train.tsv: rows left out, as a line break in a text has broken them: 2 (6, 7)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "rte"])
def test_of_small_sets_validation_and_test_are_halves_of_the_official_validation(name: str) -> None:
    task = load(name)
    first, second, both = (task.read(TOY_DATA / name, split) for split in ("validation", "test", "official-validation"))
    assert len(first) == len(both) // 2
    assert sorted(first + second, key=lambda one: int(one.example_id)) == both


@pytest.mark.parametrize("name", ["sst2", "qqp", "qnli"])
def test_of_large_sets_validation_is_held_out_of_train(name: str) -> None:
    task = load(name)
    held_out, rest, train = (task.read(TOY_DATA / name, split) for split in ("validation", "train", "official-train"))
    assert sorted(held_out + rest, key=lambda one: int(one.example_id)) == train
    assert task.read(TOY_DATA / name, "test") == task.read(TOY_DATA / name, "official-validation")


def test_mnli_validates_on_mismatched_genres_and_tests_on_matched_ones() -> None:
    task, folder = load("mnli"), TOY_DATA / "mnli"
    assert task.read(folder, "validation") == task.read(folder, "official-validation-mm")
    assert task.read(folder, "test") == task.read(folder, "official-validation")
    assert task.read(folder, "validation") != task.read(folder, "test")


def test_a_text_that_means_no_label_stays_as_it_is() -> None:
    task = load("rte")
    assert [task.parse(text) for text in (" 1\n", "2", "", "0 0")] == ["not_entailment", "2", "", "0 0"]


def test_numbers_are_read_from_any_text_and_brought_into_the_range() -> None:
    task = load("stsb")
    texts = ("3.8", " 3.84\n", "7", "-1", "five", "nan", "")
    assert [task.parse(text) for text in texts] == ["3.800", "3.840", "5.000", "0.000", "five", "nan", ""]
    assert task.labels == tuple(f"{step / 5:.1f}" for step in range(26))


def test_stsb_is_trained_on_steps_of_a_fifth_and_scored_against_the_unrounded_scores() -> None:
    examples = load("stsb").read(TOY_DATA / "stsb", "train")
    assert [one.references[0] for one in examples] == ["5.0", "0.2", "4.333", "2.75", "2.3", "0.0"]
    assert [one.targets[0].text for one in examples] == ["5.0", "0.2", "4.4", "2.8", "2.4", "0.0"]


def test_legacy_stsb_is_trained_and_scored_on_steps_of_a_tenth() -> None:
    task = load("stsb", "legacy=true")
    examples = task.read(TOY_DATA / "stsb", "train")
    assert [one.targets[0].text for one in examples] == ["5.0", "0.2", "4.3", "2.8", "2.3", "0.0"]
    assert all(one.references == (one.targets[0].text,) for one in examples)
    constant = task.score([Prediction(one.example_id, "1.0") for one in examples], examples)
    assert (constant.metrics["pearson"], constant.metrics["spearman"], constant.reasons) == (0, 0, {})


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"stsb"}))
def test_scores_have_the_official_metrics(name: str) -> None:
    task = load(name)
    examples = task.read(TOY_DATA / name, "official-validation")
    best = task.score([Prediction(one.example_id, one.references[0]) for one in examples], examples).metrics
    official = {"cola": {"matthews", "accuracy"}, "mrpc": {"accuracy", "f1"}, "qqp": {"accuracy", "f1"}}
    assert set(best) == official.get(name, {"accuracy"}) | {"invalid", "n", "ci_low", "ci_high"}
    assert all(best[metric] == 100 for metric in set(best) - {"invalid", "n"})


def test_an_answer_that_is_no_label_is_wrong() -> None:
    task = load("mrpc")
    examples = task.read(TOY_DATA / "mrpc", "official-validation")
    right = [Prediction(one.example_id, one.references[0]) for one in examples]
    found = task.score([right[0]._replace(answer="maybe"), *right[1:]], examples)
    assert (found.metrics["accuracy"], found.metrics["f1"]) == (100 * 7 / 8, pytest.approx(100 * 6 / 7))
    assert (found.metrics["invalid"], found.per_example["0"]) == (12.5, 0)


def test_stsb_is_scored_by_both_correlations() -> None:
    task = load("stsb")
    examples = task.read(TOY_DATA / "stsb", "official-validation")
    gold = [float(one.references[0]) for one in examples]
    given = [4.0, 4.9, 2.0, 1.0, -1.0, 1.0, 3.0, 0.5]
    texts = ["4.000", "4.9", "2", "1.0", "many", "1.0", "3.0", "0.5"]
    predictions = [Prediction(one.example_id, text) for one, text in zip(examples, texts, strict=True)]
    found = task.score(predictions[::-1], examples)
    assert found.metrics["pearson"] == pytest.approx(100 * np.corrcoef(gold, given)[0, 1])
    assert found.metrics["invalid"] == 12.5
    assert set(found.metrics) == {"pearson", "spearman", "invalid", "n"}
    assert found.per_example["0"] == pytest.approx(0.8)
    assert found.per_example["4"] == pytest.approx(1 - 4.3 / 5)


def test_a_constant_correlates_with_nothing_and_counts_as_zero_in_validation_only() -> None:
    task = load("stsb")
    examples = task.read(TOY_DATA / "stsb", "validation")
    constant = [Prediction(one.example_id, "2.5") for one in examples]
    found = task.score(constant, examples)
    assert found.metrics["pearson"] is found.metrics["spearman"] is None
    assert found.reasons == dict.fromkeys(("pearson", "spearman"), "the answers, or the gold scores, are all the same")
    assert task.score_validation is not None
    assert task.score_validation(constant, examples).metrics["pearson"] == 0


@pytest.mark.parametrize("name", TASKS)
def test_a_submission_goes_the_whole_way_and_back(name: str, tmp_path: Path) -> None:
    task = load(name)
    examples = task.read(TOY_DATA / name, "official-test")
    given = [Prediction(one.example_id, task.parse(task.labels[-1])) for one in examples]
    path = tmp_path / task.submission_name("official-test")
    task.submit(given, path)
    assert path.read_bytes().startswith(f"index\tprediction\n0\t{given[0].answer}\n1\t".encode())
    assert path.name in SERVER_FILES
    assert task.read_submission(path) == given
    questions = TOY_DATA / name / f"{splits_of(name)['official-test']}.tsv"
    assert task.check_submission(path, None) == task.check_submission(path, questions) == []
    task.submit(given[:-1], path)
    (fault,) = task.check_submission(path, questions)
    assert fault.startswith(f"missing ids: 1 ({len(given) - 1})")


def test_an_invalid_answer_is_submitted_as_the_first_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "MNLI-m.tsv"
    load("mnli").submit([Prediction("0", "neutral"), Prediction("1", "maybe")], path)
    assert path.read_text() == "index\tprediction\n0\tneutral\n1\tentailment\n"
    assert f"{path}: 1 of 2 answers are no label; it has entailment in their place" in capsys.readouterr().err
    load("stsb").submit([Prediction("0", "3.84"), Prediction("1", "many")], path)
    assert path.read_text() == "index\tprediction\n0\t3.840\n1\t0.000\n"
    assert "1 of 2 answers are no label; it has 0.000 in their place" in capsys.readouterr().err


def test_files_are_named_as_the_server_wants_them_or_by_their_source() -> None:
    mnli, rte = load("mnli"), load("rte")
    names = [mnli.submission_name(split) for split in ("official-test", "official-test-mm", "test")]
    assert names == ["MNLI-m.tsv", "MNLI-mm.tsv", "MNLI_dev_matched.tsv"]
    names = [rte.submission_name(split) for split in ("official-test", "test", "official-validation")]
    assert names == ["RTE.tsv", "RTE_dev_second_half.tsv", "RTE_dev.tsv"]


def test_only_our_file_of_a_part_may_leave_out_rows(tmp_path: Path) -> None:
    task = load("rte")
    given = [Prediction(one.example_id, "entailment") for one in task.read(TOY_DATA / "rte", "validation")]
    for name, faults in (("RTE_dev_first_half.tsv", 0), ("RTE.tsv", 2)):
        task.submit(given, tmp_path / name)
        assert len(task.check_submission(tmp_path / name, None)) == faults


@pytest.fixture(scope="module")
def server_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("glue") / "submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, one in SERVER_FILES.items():
            label = one.labels[0] if one.labels else "2.500"
            rows = "".join(f"{index}\t{label}\n" for index in range(one.rows))
            archive.writestr(name, f"index\tprediction\n{rows}")
    return path


def test_the_server_takes_eleven_files_in_one_zip(server_zip: Path, tmp_path: Path) -> None:
    assert len(SERVER_FILES) == 11
    assert load("cola").check_submission(server_zip, None) == []
    with zipfile.ZipFile(server_zip) as source, zipfile.ZipFile(tmp_path / "part.zip", "w") as archive:
        archive.writestr("RTE.tsv", source.read("RTE.tsv").removesuffix(b"2999\tentailment\n"))
        archive.writestr("WNLI.tsv", source.read("WNLI.tsv").replace(b"3\t0", b"3\tentailment", 1))
        archive.writestr("README.md", "ours")
    faults = load("rte").check_submission(tmp_path / "part.zip", None)
    assert "WNLI.tsv: predictions other than 0, 1: 1 (line 5: 'entailment')" in faults
    assert any(one.startswith("RTE.tsv: missing ids: 1 (2999)") for one in faults)
    assert any(one.startswith("files other than CoLA.tsv and SST-2.tsv") and "README.md" in one for one in faults)
    assert any(one.startswith("no CoLA.tsv and no SST-2.tsv") for one in faults)


def test_of_a_zip_the_tasks_own_file_is_checked_by_the_questions(server_zip: Path) -> None:
    faults = load("rte").check_submission(server_zip, TOY_DATA / "rte" / "test.tsv")
    assert [one.partition(":")[0] for one in faults] == ["RTE.tsv"]
    assert "ids that the questions do not have: 2,996 (4, 5, " in faults[0]


def test_existing_files_are_scored_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = [{"idx": 0, "label": "entailment"}, {"idx": 1, "label": 1, "more": 0}, {"idx": 2, "label": "0"}]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, gold)))
    (tmp_path / "RTE.tsv").write_text("index\tprediction\n0\tentailment\n1\tentailment\n2\tentailment\n")
    files = ["--predictions", str(tmp_path / "RTE.tsv"), "--annotations", str(tmp_path / "gold.jsonl")]
    outputs = ["--output", str(tmp_path / "metrics.json"), "--per-example", str(tmp_path / "scores.json")]
    evaluate(["--task", "rte", *files, *outputs])
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] == pytest.approx(200 / 3)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"0": 1, "1": 0, "2": 1}
    assert "accuracy" in capsys.readouterr().out


def test_existing_files_are_scored_against_numbers_and_official_files(tmp_path: Path) -> None:
    stsb = load("stsb")
    (tmp_path / "gold.jsonl").write_text('{"idx": 0, "label": 1.5}\n{"idx": 1, "label": "3"}\n{"idx": 2, "label": 2}')
    (tmp_path / "STS-B.tsv").write_text("index\tprediction\n0\t1.25\n1\t4.75\n2\t2.25\n")
    found = score_files(stsb, tmp_path / "STS-B.tsv", OfficialFiles(tmp_path / "gold.jsonl")).metrics
    assert found["pearson"] == pytest.approx(100 * np.corrcoef([1.5, 3, 2], [1.25, 4.75, 2.25])[0, 1])
    assert found["spearman"] == pytest.approx(100)
    official = TOY_DATA / "mrpc" / "msr_paraphrase_test.txt"
    (tmp_path / "MRPC.tsv").write_text("index\tprediction\n0\t1\n1\t1\n2\t1\n")
    found = score_files(load("mrpc"), tmp_path / "MRPC.tsv", OfficialFiles(official)).metrics
    assert (found["accuracy"], found["f1"]) == (pytest.approx(200 / 3), pytest.approx(80))


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"sentence1": "a", "sentence2": "b", "label": "maybe", "idx": 0},
        {"sentence1": "a", "sentence2": None, "label": 0, "idx": 1},
        {"sentence1": "a", "label": 1, "idx": "2"},
    ]
    (tmp_path / "train.rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = (
        'train.rows.jsonl: "label" is not one of entailment, not_entailment or its number (0, 1): 1 (line 1: "maybe"); '
        '"sentence2" is null, not text: 1 (line 2); no "sentence2": 1 (line 3); "idx" is text, not a whole number: 1 '
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        load("rte").read(tmp_path, "train")
    (tmp_path / "train.rows.jsonl").write_text("\n".join([json.dumps(rows[0] | {"label": 1})] * 2))
    with pytest.raises(InputDataError, match=r'more than one row with the same "idx": 1 \(0\)'):
        load("rte").read(tmp_path, "train")


def test_a_file_of_another_task_and_an_absent_one_are_refused(tmp_path: Path) -> None:
    message = "train.tsv has no column question and no column sentence. It has: index, sentence1, sentence2, label"
    with pytest.raises(InputDataError, match=message):
        load("qnli").read(TOY_DATA / "rte", "official-train")
    message = f"{tmp_path} has no dev.tsv and no dev.txt and no validation.rows.jsonl. Files there: none."
    with pytest.raises(InputDataError, match=re.escape(message)):
        load("rte").read(tmp_path, "test")


# Rows of the official files: train, dev, test, and DePT's train, validation, test.
REAL = {
    "cola": ("CoLA", (8_551, 1_043, 1_063), (8_551, 521, 522)),
    "sst2": ("SST-2", (67_349, 872, 1_821), (66_349, 1_000, 872)),
    "mrpc": ("MRPC", (3_667, 408, 1_725), (3_667, 204, 204)),  # a row of train is missing in this copy
    "stsb": ("STS-B", (5_749, 1_500, 1_379), (5_749, 750, 750)),
    "rte": ("RTE", (2_490, 277, 3_000), (2_490, 138, 139)),
    "qnli": ("QNLI", (None, 5_463, 5_463), (None, None, 5_463)),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_files_have_the_published_sizes(shared: Path, name: str) -> None:
    folder, official, depts = REAL[name]
    task = load(name, "splits.whole=train")
    sizes = dict(zip(("whole", "official-validation", "official-test"), official, strict=True))
    sizes |= dict(zip(("train", "validation", "test"), depts, strict=True))
    for split, size in sizes.items():
        if size is not None:
            examples = task.read(shared / "data" / "glue" / folder, split)
            assert len(examples) == size
            assert all(one.references for one in examples) == (split != "official-test")
            if "/" not in splits_of(name).get(split, ""):
                assert [one.example_id for one in examples] == [str(index) for index in range(size)]
    assert SERVER_FILES[task.submission_name("official-test")].rows == official[2]


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(set(REAL) - {"stsb"}))
def test_scores_on_real_labels_are_those_of_scikit_learn(shared: Path, name: str, tmp_path: Path) -> None:
    task, folder = load(name), shared / "data" / "glue" / REAL[name][0]
    examples = task.read(folder, "official-validation")
    predictions = sorted(answer(examples), key=lambda one: int(one.example_id))
    task.submit(predictions, tmp_path / task.submission_name("official-validation"))
    path = tmp_path / task.submission_name("official-validation")
    found = score_files(task, path, OfficialFiles(folder / "dev.tsv")).metrics
    gold, given = [one.references[0] for one in examples], [one.answer for one in predictions]
    scorers = {
        "accuracy": metrics.accuracy_score,
        "f1": partial(metrics.f1_score, pos_label="1"),
        "matthews": metrics.matthews_corrcoef,
    }
    for metric in MEMBERS[name].metrics:
        assert found[metric] == pytest.approx(100 * scorers[metric](gold, given), abs=1e-9)


@pytest.mark.shared
def test_correlations_on_real_scores_are_those_of_scipy(shared: Path, tmp_path: Path) -> None:
    task, folder = load("stsb"), shared / "data" / "glue" / "STS-B"
    rows = read_rows(folder / "dev.tsv").values()
    gold = [float(row["score"]) for row in rows]
    given = np.clip(np.array(gold) + np.random.default_rng(0).normal(size=len(gold)), 0, 5).round(3)
    task.submit([Prediction(str(index), f"{one}") for index, one in enumerate(given)], tmp_path / "STS-B_dev.tsv")
    found = score_files(task, tmp_path / "STS-B_dev.tsv", OfficialFiles(folder / "dev.tsv")).metrics
    assert found["pearson"] == pytest.approx(100 * stats.pearsonr(gold, given).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(100 * stats.spearmanr(gold, given).statistic, abs=1e-9)


@pytest.mark.shared
def test_microsofts_test_has_the_texts_of_glues(shared: Path) -> None:
    task, folder = load("mrpc"), shared / "data" / "glue" / "MRPC"
    labelled, test = task.read(folder, "labelled-test"), task.read(folder, "official-test")
    assert [one.text for one in labelled] == [one.text for one in test]
    assert sum(one.references == ("1",) for one in labelled) == 1_147
