"""The code of docs/peft.md runs, block after block."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from dept_vl.integrations.peft import DeptConfig

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"


@pytest.mark.filterwarnings("ignore:.pin_memory. argument")  # of the trainer, where there is no GPU
def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    first, training, loading, _ = blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(first.strip().splitlines()) - first.count("import") <= 10
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        if block == training:
            trained = names["model"].eval()
        if block == loading:
            names["model"].set_adapter("reviews")
            with torch.no_grad():
                read = [
                    one(**names["batch"], labels=names["batch"]["input_ids"]).logits
                    for one in (names["model"], trained)
                ]
            assert torch.equal(*read)
    assert capsys.readouterr().out.startswith("trainable params: ")


def test_the_page_has_the_fields_and_their_defaults() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE.read_text(), flags=re.MULTILINE))
    own = {field.name: repr(field.default).replace("'", '"') for field in fields(DeptConfig)}
    inherited = {field.name for field in fields(DeptConfig.__bases__[0])}
    assert documented == {
        name: value for name, value in own.items() if name not in inherited | {"dept_vl", "prompt_ids"}
    }
