"""DePT's configuration in PEFT: what is wrong with it is said when it is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")
from peft import PeftConfig, PeftType

from dept_vl.integrations.peft import DeptConfig
from feature_extraction.errors import UsageError


def test_the_method_is_one_of_peft_s() -> None:
    assert DeptConfig().peft_type == PeftType.DEPT == PeftType("DEPT") == "DEPT"
    assert "DEPT" in list(PeftType)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": "rows"}, "DeptConfig.offset is 'rows'; it is one of none, position, token, both"),
        ({"prompt_init": "zero"}, "DeptConfig.prompt_init is 'zero'; it is one of vocabulary, text, normal"),
        ({"low_rank_init": "zero"}, "DeptConfig.low_rank_init is 'zero'; it is one of official, paper"),
        ({"scale": "double"}, "DeptConfig.scale is 'double'; it is paper (1), official (8/sqrt(r)) or a number"),
        ({"rank": -1}, "DeptConfig.rank is -1; it is a count, 0 or more"),
        ({"prompt_length": -2}, "DeptConfig.prompt_length is -2; it is a count, 0 or more"),
        (
            {"prompt_init": "text"},
            "DeptConfig.prompt_init is 'text' but prompt_ids is empty. Give a text's token ids, "
            "as in prompt_ids=tokenizer(text).input_ids",
        ),
    ],
)
def test_a_wrong_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        DeptConfig(**options)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("options", "rank", "spent"),
    [
        ({}, 45, 76_800),  # the paper's m = 40 and r = 45 of T5-base
        ({"prompt_length": 60}, 30, 76_800),
        ({"prompt_length": 60, "offset": "token"}, 19, 76_051),
        ({"offset": "none"}, 0, 30_720),
        ({"rank": 10}, 10, 40_960),
        ({"rank": 50, "budget_length": None}, 50, 81_920),
    ],
)
def test_the_rank_is_the_largest_in_the_budget_or_the_given_one(options: dict[str, Any], rank: int, spent: int) -> None:
    budget = DeptConfig(**options).budget(768)
    assert (budget.rank, budget.spent) == (rank, spent)


def test_a_rank_beyond_the_budget_is_refused_by_the_names_of_this_configuration() -> None:
    with pytest.raises(UsageError) as raised:
        DeptConfig(rank=46).budget(768)
    message = str(raised.value)
    assert message.startswith("DeptConfig.rank (r) is 46: ")
    assert "The largest rank that fits is 45" in message


def test_without_a_budget_the_rank_must_be_given() -> None:
    with pytest.raises(UsageError) as raised:
        DeptConfig(budget_length=None).budget(768)
    assert str(raised.value) == "DeptConfig.rank and budget_length are both None; give one of them, as in rank=30"


def test_a_configuration_comes_back_as_it_was_written(tmp_path: Path) -> None:
    config = DeptConfig(task_type="CAUSAL_LM", prompt_length=7, rank=3, scale=0.5, offset="both", seed=2)
    config.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)) == config
    # Without tensors beside it there is nothing to record.
    assert json.loads((tmp_path / "adapter_config.json").read_text())["dept_vl"] is None
