"""The benchmarks of the engine: that every part runs, what is counted, and what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dept_vl.bench import commands, plain_checkout
from dept_vl.bench import serve as bench_serve
from dept_vl.bench.commands import main
from dept_vl.bench.flops import step_flops
from dept_vl.bench.peers import OfficialDept
from dept_vl.bench.rows import Goal, Row, goals_table, table
from dept_vl.bench.shapes import BUDGET_LENGTH, WORKLOADS, batches_of, config_of, our_model, random_t5, shrunk
from dept_vl.bench.timing import Measured, measure
from dept_vl.command_line import run
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.serving.load_test import LoadFigures
from feature_extraction.errors import InputDataError

CPU = torch.device("cpu")
NOT_NEEDED = ("jaxtyping", "omegaconf", "datasets", "pycocotools", "pycocoevalcap", "sklearn", "matplotlib", "litserve")


@pytest.mark.parametrize(
    ("prompt_length", "teraflops"), [(100, 2.549), (80, 2.397), (60, 2.247), (40, 2.098), (20, 1.951), (0, 1.805)]
)
def test_operations_are_those_counted_by_hand_for_t5_base(prompt_length: int, teraflops: float) -> None:
    counted = step_flops(config_of("base"), batch=16, encoder_length=prompt_length + 256, target_length=8)
    assert counted / 1e12 == pytest.approx(teraflops, rel=2e-3)


def test_lengths_are_like_those_of_glue_and_buckets_pad_less() -> None:
    workload = WORKLOADS["glue"]
    lengths = workload.lengths(5_000)
    assert lengths.mean() == pytest.approx(38, rel=0.05)
    assert lengths.max() <= 256
    padded, bucketed = (batches_of(workload, size=16, count=20, bucketed=one) for one in (False, True))
    assert {batch.text_ids.shape for batch in padded} == {(16, 256)}
    assert sorted(one for batch in padded for one in batch.example_ids) == sorted(
        one for batch in bucketed for one in batch.example_ids
    )
    assert sum(batch.text_ids.numel() for batch in bucketed) < sum(batch.text_ids.numel() for batch in padded) / 4


def test_the_official_arithmetic_embeds_as_ours_where_texts_fill_their_length() -> None:
    """Padding it treats otherwise, and visual tokens it has none of: there they have no norms, boxes or order."""
    workload = shrunk(WORKLOADS["vl"])
    (batch,) = batches_of(workload, size=3, count=1, bucketed=False)
    official = OfficialDept(random_t5("tiny", dtype=torch.float32, device=CPU, eager=True), workload, prompt_length=20)
    built = our_model(random_t5("tiny", dtype=torch.float32, device=CPU), workload, prompt_length=20, engine="library")
    prompt, visual = built.model.encoder.prompts()["prompt"], built.model.encoder.visual_embedding
    assert isinstance(prompt, DecomposedPrompt)
    assert visual is not None
    assert official.visual is not None
    assert (prompt.a.shape, prompt.b.shape) == (official.a.shape, official.b.shape)
    with torch.no_grad():
        official.b.normal_()
        official.prompt.copy_(prompt.prompt)
        prompt.a.copy_(official.a)
        prompt.b.copy_(official.b)
        text = built.model.encoder.embed(batch)[0]
        embedded, _ = official.embed(batch)
        built.model.train()
        torch.testing.assert_close(built.model.encoder.embed(batch)[0], embedded[:, : text.shape[1]])
    assert torch.isfinite(official(batch))


def test_implementations_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def make(name: str) -> Callable[[], Callable[[int], None]]:
        return lambda: lambda number: turns.append(f"{name}{number}")

    found = measure({"a": make("a"), "b": make("b")}, turns=2, rounds=1, device=CPU)
    assert turns == ["a0", "b0", "a0", "b0", "a1", "b1", "a0", "b0", "a1", "b1"]
    assert set(found) == {"a", "b"}
    low, high = found["a"].quartiles or (1.0, 0.0)
    assert found["a"].milliseconds is not None
    assert low <= found["a"].milliseconds <= high
    assert found["a"].first_seconds is not None


@pytest.mark.parametrize("when", ["when it is made", "in a turn"])
def test_out_of_memory_is_a_row(when: str) -> None:
    def fail(number: int = 0) -> None:
        raise torch.cuda.OutOfMemoryError

    def large() -> Callable[[int], None]:
        if when == "when it is made":
            fail()
        return lambda number: fail() if number else None

    found = measure({"large": large, "small": lambda: lambda number: None}, turns=2, rounds=1, device=CPU)
    assert found["large"].milliseconds is None
    assert found["small"].milliseconds is not None
    text = table([Row("3b", "vl", 256, "ours", 20, found["large"])])
    assert text.splitlines()[-1] == "| 3b | vl | 256 | ours | 20 | out of memory |  |  |  |  |  |"


def test_goals_say_whether_they_were_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    goals = tuple(Goal(f"at least {least}", least, "s/w/1/slow/100", "s/w/1/fast/20") for least in (4.0, 8.0))
    more = (
        Goal("memory", 3.0, "s/w/1/slow/100", "s/w/1/fast/20", "peak_gigabytes"),
        Goal("share", 0.5, "s/w/1/fast/20", quantity="floor_share"),
        Goal("other", 2.0, "none", "none"),
    )
    monkeypatch.setattr("dept_vl.bench.rows.GOALS", {"train": (*goals, *more)})
    rows = [
        Row("s", "w", 1, name, m, Measured(ms, peak_gigabytes=ms / 2), 0.6)
        for name, m, ms in (("slow", 100, 8.0), ("fast", 20, 2.0))
    ]
    *_, reached, missed, memory, share, unknown = goals_table("train", rows).splitlines()
    assert reached == "| at least 4.0 | 4 | 4.00 | reached |"
    assert missed == "| at least 8.0 | 8 | 4.00 | missed: 50% of it |"
    assert memory == "| memory | 3 | 4.00 | reached |"
    assert share == "| share | 0.5 | 0.60 | reached |"
    assert unknown == "| other | 2 | | not measured in this run |"


def test_training_and_answering_run_on_tiny_shapes_and_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, names in (
        ("train", {"peft", "official", "library", "ours"}),
        ("infer", {"peft", "official", "library", "ours", "peft, 4 calls", "ours, one adapter", "ours, 4 adapters"}),
    ):
        main([command, "--smoke", "--output", str(tmp_path / command), "--plots"])
        printed = capsys.readouterr().out
        record = json.loads((tmp_path / command / "results.json").read_text())
        assert names <= {row["implementation"] for row in record["rows"]}
        assert all(row["measured"]["milliseconds"] > 0 for row in record["rows"])
        assert f"torch {torch.__version__.partition('+')[0]}" in record["machine"]
        assert "not measured in this run" in printed
        assert (tmp_path / command / "table.md").read_text().count("| tiny |") == len(record["rows"])
        picture = (tmp_path / command / f"{command}_time.svg").read_text()
        assert "prompt length m" in picture
    methods = {row["prompt_length"] for row in record["rows"]}
    assert methods == {20, BUDGET_LENGTH}


def test_serving_runs_and_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    main(["serve", "--smoke"])
    figures = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line.strip())
    assert (figures["requests"], figures["errors"], figures["adapters"]) == ("24", "0", "3")


def test_the_store_has_options_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["store", "--help"])
    assert "--images" in capsys.readouterr().out


def test_lost_requests_fail_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lost = LoadFigures(9, 2, 3, 4, 1.0, 1.0, 1.0, 1.0, [], "it was cut off")
    monkeypatch.setattr(bench_serve, "serve_figures", lambda **options: lost)
    assert run(commands.main, ["serve"]) == 2
    assert "2 of 9 requests had no answer, first: it was cut off" in capsys.readouterr().err


def test_a_service_that_does_not_start_says_why() -> None:
    with pytest.raises(InputDataError, match=r"The service did not start: .*--max-batch.*Try it by itself"):
        bench_serve.serve_figures(backbone="t5-mini", adapters=1, requests=1, concurrency=1, max_batch=-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--sizes", "huge"], "--sizes names 'huge'. It is some of: tiny, mini, small, base, large, 3b"),
        (["infer", "--workloads", "vqa"], "--workloads names 'vqa'. It is some of: padded, glue, vl"),
        (["train", "--batches", "many"], "'many' is no list of whole numbers, such as 16,256"),
        (["train", "--prompt-lengths=-1"], "'-1' has a number below 0"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, arguments) == 2
    assert message in capsys.readouterr().err


def test_annotations_need_no_library_in_a_plain_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jaxtyping")
    monkeypatch.setattr(plain_checkout.importlib.util, "find_spec", lambda name: None)
    plain_checkout.allow_plain_checkout()
    stand_in = sys.modules["jaxtyping"]
    assert stand_in.Float[torch.Tensor, "B T"] is stand_in.Float
    monkeypatch.undo()
    assert sys.modules["jaxtyping"] is not stand_in


@pytest.mark.parametrize("command", ["train", "infer"])
def test_it_runs_with_only_torch_transformers_timm_and_peft(command: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] in {NOT_NEEDED!r} else find(name, path, target)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
    )
    repository = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "dept_vl.bench", command, "--smoke"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "| tiny | padded | 2 | ours | 20 |" in result.stdout
