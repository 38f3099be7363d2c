from __future__ import annotations

import pytest

from dept_vl.bench.training_step import METHODS, main


def test_every_method_is_timed_at_its_own_encoder_length(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--text", "4", "--visual-tokens", "2", "--width", "6", "--steps", "1"]
    main([*sizes, "data.batch_size=2", "method.budget_length=20", "method.prompt_length=8"])
    about, heading, *rows = capsys.readouterr().out.splitlines()
    assert about.startswith("t5-mini, ")
    assert about.endswith(", fp32, batch 2")
    assert heading.split()[:3] == ["method", "encoder", "length"]
    assert [row.split()[0] for row in rows] == list(METHODS)
    assert [int(row.split()[1]) for row in rows] == [20 + 6, 8 + 6, 6, 6]  # prompt, dept, visual_only, full
    assert all(float(row.split()[2]) > 0 for row in rows)
