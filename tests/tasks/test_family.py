from __future__ import annotations

import re
from pathlib import Path

import pytest

from dept_vl.config import load_settings
from dept_vl.tasks.family import label_of, labels_only
from dept_vl.tasks.task import load_task
from dept_vl.types import Prediction
from feature_extraction.errors import UsageError


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        ("rte", "rtee", "module glue has no such task. Did you mean 'rte'? There are: cola, sst2, mrpc, stsb, "),
        ("cb", "boolqq", "module superglue has no such task. Did you mean 'boolq'? There are: boolq, cb, wic, wsc, "),
        ("nq", "triviaqa", "module reading has no such task. There are: nq, hotpotqa, searchqa, newsqa, squad"),
        ("yelp", "paw", "module sentences has no such task. Did you mean 'paws'? There are: winogrande, yelp, "),
    ],
)
def test_a_name_that_a_family_does_not_have_is_refused(task: str, wrong: str, message: str) -> None:
    settings = load_settings({"task": task}, [f"task.name={wrong}"]).task
    with pytest.raises(UsageError, match=re.escape(f"task.name is {wrong!r}, but task.{message}")):
        load_task(settings)


def test_a_text_means_the_label_that_it_is_generated_for_and_no_other() -> None:
    names = {"0": "1", "1": "2"}  # WinoGrande's digits for its options
    assert [label_of(text, names) for text in (" 1\n", "0", "2", "3", "")] == ["2", "1", "'2'", "3", ""]
    assert label_of(" free text ", {}) == "free text"


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("rte", "entailment", "'entailment'"),
        ("cola", "1", "1"),
        ("cola template=t5", "1", "'1'"),
        ("mnli template=t5", "neutral", "neutral"),
        ("boolq", "true", "'true'"),
        ("multirc template=t5", "1", "'1'"),
        ("wsc template=t5", "True", "True"),
        ("winogrande", "2", "'2'"),
        ("winogrande template=t5", "2", "2"),
        ("yelp template=t5", "1", "'1'"),
    ],
)
def test_a_label_s_name_that_is_not_its_text_is_no_label(task: str, text: str, answer: str) -> None:
    name, *changes = task.split()
    found = load_task(load_settings({"task": name}, [f"task.{one}" for one in changes]).task)
    assert found.parse(text) == answer


def test_what_is_no_label_is_replaced_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [Prediction("0", "no"), Prediction("1", "maybe"), Prediction("2", "")]
    found = labels_only(given, tmp_path, {"yes", "no"}.__contains__, instead="yes")
    assert found == [Prediction("0", "no"), Prediction("1", "yes"), Prediction("2", "yes")]
    assert capsys.readouterr().err == f"{tmp_path}: 2 of 3 answers are no label; it has yes in their place\n"
    assert labels_only(given[:1], tmp_path, {"yes", "no"}.__contains__, instead="yes") == given[:1]
    assert capsys.readouterr().err == ""
