"""The loop: what is updated, recorded, kept and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.settings import OptimizerSettings
from dept_vl.training import loop
from dept_vl.training.checkpoint import Progress, load_newest_checkpoint
from dept_vl.training.loop import TrainingResult
from dept_vl.training.loss_log import MEASURED, read_log
from dept_vl.types import Batch
from feature_extraction.errors import Interrupted, NumericalError


class Bench(Protocol):
    """See conftest.py."""

    folder: Path
    settings: Any
    built: Any
    total_steps: int
    scores: list[float] | dict[str, list[float]]
    share: float
    stop: Any
    change: Callable[[int, Batch], Batch]
    validated: list[int]
    given: list[int]

    def run(self) -> TrainingResult: ...


MakeBench = Callable[..., Bench]


def parameters(bench: Bench) -> dict[str, Tensor]:
    """Copies of all that trains."""
    return {name: value.detach().clone() for group in bench.built.groups for name, value in group.parameters.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_log(folder / "log.jsonl") if "loss" in record]


def test_a_run_does_its_steps_validates_and_keeps_two_checkpoints(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.total_steps = 7
    result = bench.run()
    assert bench.given == [0, 1, 2, 3, 4, 5, 6]
    assert bench.validated == [2, 4, 6, 7]  # every second step, and the last
    assert checkpoints(tmp_path) == ["step-00000006", "step-00000007"]
    assert result.progress == Progress(
        step=7,
        best_step={"vqa": 2},
        best_score={"vqa": 0.0},
        validations_without_gain=3,
        window_loss={},
        window_steps={},
        finished=True,
    )


def test_a_finished_run_is_not_trained_any_further(make_bench: MakeBench, tmp_path: Path) -> None:
    first = make_bench(tmp_path)
    expected = first.run()
    again = make_bench(tmp_path)
    result = again.run()
    assert again.given == []
    assert result.progress == expected.progress
    assert equal(result.best["vqa"], expected.best["vqa"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(make_bench: MakeBench, tmp_path: Path) -> None:
    """Dropout is on, and a function of seed and step: what was drawn before the run does not matter."""
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bench = make_bench(tmp_path / name, seed=seed)
        torch.rand(len(runs))
        bench.run()
        runs.append(parameters(bench))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_the_log_has_a_line_for_each_window_and_each_validation(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.total_steps = 2
    bench.scores = [12.5]
    bench.run()
    first, second, validation = read_log(tmp_path / "log.jsonl")
    assert list(first)[:5] == ["step", "loss", "gradient_norm", "learning_rate", "update_norm"]
    assert tuple(list(first)[5:]) == MEASURED
    assert (first["step"], second["step"]) == (1, 2)
    assert set(first["seconds"]) == {"update", "waiting_for_batch"}
    assert set(first["update_norm"]) == {"prompt", "low_rank", "visual"}
    assert first["learning_rate"] == {"prompt": 0.3, "low_rank": 1e-3, "visual": 1e-3}
    assert second["learning_rate"]["prompt"] == pytest.approx(0.15)
    prompt = bench.built.model.encoder.prompt.prompt
    assert validation == {
        "step": 2,
        "task": "vqa",
        "validation": {"accuracy": 12.5, "number": None},
        "prompt_norm": float(prompt.detach().norm()),
        "update_norm": second["update_norm"],
        "most_frequent_answer": "yes",
        "most_frequent_share": 0.5,
        "peak_memory_bytes": validation["peak_memory_bytes"],
    }
    assert 0 < first["peak_memory_bytes"] <= validation["peak_memory_bytes"]


def test_a_line_of_the_log_averages_over_its_window(make_bench: MakeBench, tmp_path: Path) -> None:
    make_bench(tmp_path / "each").run()
    make_bench(tmp_path / "three", log_every=3).run()
    each = losses(tmp_path / "each")
    assert losses(tmp_path / "three") == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])


def test_a_window_goes_on_over_a_stop(make_bench: MakeBench, tmp_path: Path) -> None:
    make_bench(tmp_path / "whole", log_every=3).run()
    stopped = make_bench(tmp_path / "stopped", log_every=3, checkpoint_every=2)
    stopped.change = lambda step, batch: stop_in(stopped, batch) if step == 3 else batch
    with pytest.raises(Interrupted):
        stopped.run()
    make_bench(tmp_path / "stopped", log_every=3).run()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def stop_in(bench: Bench, batch: Batch) -> Batch:
    bench.stop.name = "SIGTERM"
    return batch


def test_the_update_norm_is_the_distance_that_a_group_moved(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.total_steps = 1
    before = parameters(bench)
    bench.run()
    after = parameters(bench)
    norms = read_log(tmp_path / "log.jsonl")[0]["update_norm"]
    assert norms["prompt"] == pytest.approx(float((after["prompt.prompt"] - before["prompt.prompt"]).norm()))
    squares = sum(float((after[name] - before[name]).square().sum()) for name in ("prompt.a", "prompt.b"))
    assert norms["low_rank"] == pytest.approx(squares**0.5)


def test_gradients_are_clipped_together_and_the_log_has_their_norm_before(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    original = loop.make_optimizer

    def watched(*arguments: Any) -> torch.optim.AdamW:
        optimizer = original(*arguments)

        def measure(*_: Any) -> None:
            gradients = [value.grad for group in optimizer.param_groups for value in group["params"]]
            norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

        optimizer.register_step_post_hook(measure)  # the kernel that updates also scales
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", watched)
    bench = make_bench(tmp_path, optimizer=OptimizerSettings(clip_norm=0.25))
    bench.run()
    assert norms == pytest.approx([0.25] * 6, rel=1e-4)
    assert all(record["gradient_norm"] > 1 for record in read_log(tmp_path / "log.jsonl") if "loss" in record)


def test_the_step_is_made_as_the_settings_say(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[dict[str, Any]] = []
    original = loop.TrainingStep

    def watched(**options: Any) -> Any:
        received.append(options)
        return original(**options)

    monkeypatch.setattr(loop, "TrainingStep", watched)
    monkeypatch.setattr(loop, "recorder_for", lambda device, *, checkpointed: received.append({"asked": checkpointed}))
    make_bench(tmp_path / "plain").run()
    changed = {"precision": "bf16", "accumulation": 2, "checkpoint_activations": True}
    make_bench(tmp_path / "changed", optimizer=OptimizerSettings(clip_norm=0.25), **changed).run()
    names = ("clip_norm", "bf16", "accumulation", "processes", "record", "talks", "asked")
    assert [{name: options[name] for name in names if name in options} for options in received] == [
        {"asked": False},
        {"clip_norm": 1.0, "bf16": False, "accumulation": 1, "processes": 1, "record": None, "talks": True},
        {"asked": True},
        {"clip_norm": 0.25, "bf16": True, "accumulation": 2, "processes": 1, "record": None, "talks": True},
    ]


def test_frozen_parameters_keep_every_bit(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    before = {name: value.clone() for name, value in bench.built.model.backbone.state_dict().items()}
    bench.run()
    assert equal(before, dict(bench.built.model.backbone.state_dict()))


def test_the_best_tensors_are_those_of_the_best_validation(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.scores = [10.0, 30.0, 20.0]
    result = bench.run()
    assert (result.progress.best_step, result.progress.best_score) == ({"vqa": 4}, {"vqa": 30.0})
    shorter = make_bench(tmp_path / "shorter")
    shorter.change = lambda step, batch: stop_in(shorter, batch) if step == 3 else batch
    with pytest.raises(Interrupted):
        shorter.run()
    trained = parameters(shorter)
    assert all(torch.equal(result.best["vqa"][name], value) for name, value in trained.items())
    assert not all(torch.equal(result.best["vqa"][name], value) for name, value in parameters(bench).items())


def test_of_equal_scores_the_first_is_the_best(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.scores = [10.0, 10.0, 10.0]
    assert bench.run().progress.best_step == {"vqa": 2}


def test_patience_stops_early_and_says_so(
    make_bench: MakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(tmp_path, patience=2)
    bench.total_steps = 100
    bench.scores = [10.0, 30.0, 20.0, 30.0, 40.0]
    result = bench.run()
    assert bench.validated == [2, 4, 6, 8]
    assert result.progress.finished
    assert (result.progress.step, result.progress.best_step) == (8, {"vqa": 4})
    assert checkpoints(tmp_path)[-1] == "step-00000008"
    assert "No better accuracy in 2 validations: stopped early at step 8\n" in capsys.readouterr().err
    again = make_bench(tmp_path, patience=2)
    again.total_steps = 100
    assert again.run().progress == result.progress
    assert again.given == []


def test_patience_counts_from_the_last_gain(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path, patience=2)
    bench.total_steps = 12
    bench.scores = [10.0, 5.0, 20.0, 5.0, 30.0, 5.0]
    assert bench.run().progress.step == 12


@pytest.mark.parametrize(("share", "told"), [(0.99, True), (0.98, False)])
def test_a_model_that_gives_one_answer_only_is_told_of(
    make_bench: MakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, told: bool
) -> None:
    bench = make_bench(tmp_path)
    bench.total_steps = 2
    bench.share = share
    bench.run()
    line = next(line for line in capsys.readouterr().err.splitlines() if "validation accuracy" in line)
    assert f"{share:.0%} of the answers are 'yes'" in line
    assert re.search(r"prompt norm \d+\.\d, last update prompt \S+, low_rank \S+, visual \S+, \d+% of", line)
    assert ("It is not learning yet: if this stays, change optimizer.prompt_lr or train for more steps" in line) is told


def test_methods_without_a_prompt_have_no_prompt_norm(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path, method="visual_only")
    bench.total_steps = 2
    bench.run()
    assert read_log(tmp_path / "log.jsonl")[-1]["prompt_norm"] is None


def test_a_stop_signal_saves_after_the_step_and_says_how_to_go_on(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path, checkpoint_every=100)
    bench.change = lambda step, batch: stop_in(bench, batch) if step == 2 else batch
    with pytest.raises(Interrupted) as raised:
        bench.run()
    assert str(raised.value) == (f"SIGTERM at step 3 of 6, saved in {tmp_path}. Run the same command to go on")
    assert checkpoints(tmp_path) == ["step-00000003"]


def test_a_stop_signal_in_the_last_step_finishes_the_run(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.change = lambda step, batch: stop_in(bench, batch) if step == 5 else batch
    assert bench.run().progress.finished


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(
    make_bench: MakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str], log_every: int
) -> None:
    scores = [10.0, 30.0, 20.0]
    whole = make_bench(tmp_path / "whole", log_every=log_every)
    whole.scores = scores
    expected = whole.run()
    stopped = make_bench(tmp_path / "stopped", log_every=log_every, checkpoint_every=100)
    stopped.scores = scores
    stopped.change = lambda step, batch: stop_in(stopped, batch) if step == 4 else batch
    with pytest.raises(Interrupted):
        stopped.run()
    resumed = make_bench(tmp_path / "stopped", log_every=log_every)
    resumed.scores = scores
    capsys.readouterr()
    result = resumed.run()
    assert "Resuming at step 5 of 6\n" in capsys.readouterr().err
    assert resumed.given == [5]
    assert result.progress == expected.progress
    assert equal(result.best["vqa"], expected.best["vqa"])
    assert equal(parameters(resumed), parameters(whole))
    one, other = (load_newest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "stopped"))
    assert one is not None
    assert other is not None
    assert equal(one.optimizer, other.optimizer)


def test_the_longest_trained_text_is_saved_and_restored(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    assert bench.run().best["vqa"]["prompt.trained_length"] == 5
    again = make_bench(tmp_path)
    again.run()
    prompt = again.built.model.encoder.prompt
    assert isinstance(prompt, DecomposedPrompt)
    assert prompt.trained_length == 5


def spoil_features(bench: Bench, step: int, value: float) -> None:
    """Give the batch of a step a feature that is no finite number."""

    def change(current: int, batch: Batch) -> Batch:
        tokens = batch.visual_tokens.clone()
        tokens[0, 0, 0, 0] = value
        return replace(batch, visual_tokens=tokens) if current == step else batch

    bench.change = change


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(make_bench: MakeBench, tmp_path: Path, value: float) -> None:
    reference = make_bench(tmp_path / "reference", checkpoint_every=1)
    reference.change = lambda step, batch: stop_in(reference, batch) if step == 2 else batch
    with pytest.raises(Interrupted):
        reference.run()

    bench = make_bench(tmp_path / "bad", log_every=2)  # step 3 ends no window
    spoil_features(bench, 3, value)
    with pytest.raises(NumericalError) as raised:
        bench.run()
    assert raised.value.exit_code == 7
    assert str(raised.value) == (
        f"Loss nan and gradient norm nan at step 3 are not both finite; the update was not made. The example ids are "
        f"in {tmp_path / 'bad' / 'nan_batch.json'}, the last good checkpoint in {tmp_path / 'bad' / 'checkpoints'}. "
        "Try a lower optimizer.prompt_lr in a new --output folder, or training.precision=fp32"
    )
    assert equal(parameters(bench), parameters(reference))  # as after three updates
    assert checkpoints(tmp_path / "bad") == ["step-00000002"]
    assert load_newest_checkpoint(tmp_path / "bad" / "checkpoints") is not None
    assert json.loads((tmp_path / "bad" / "nan_batch.json").read_text()) == {
        "step": 3,
        "loss": "nan",
        "gradient_norm": "nan",
        "example_ids": ["example-0", "example-1"],
    }
    assert [record["step"] for record in read_log(tmp_path / "bad" / "log.jsonl")] == [2, 2]


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    weight = bench.built.model.encoder.visual_embedding.object_order.weight
    weight.register_hook(lambda gradient: gradient * (float("inf") if len(bench.given) == 2 else 1.0))
    with pytest.raises(
        NumericalError, match=r"^Loss [0-9.]+ and gradient norm (inf|nan) at step 1 are not both finite"
    ):
        bench.run()
    one_step = make_bench(tmp_path / "one")
    one_step.change = lambda step, batch: stop_in(one_step, batch) if step == 0 else batch
    with pytest.raises(Interrupted):
        one_step.run()
    assert equal(parameters(bench), parameters(one_step))


def test_a_tracker_that_fails_stops_nothing(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(self: Accelerator, values: dict[str, float], step: int) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(Accelerator, "log", unreachable)
    bench = make_bench(tmp_path)
    assert bench.run().progress.finished
    assert "The tracker did not take step 1 (no route); log.jsonl has it, training goes on\n" in capsys.readouterr().err
    assert len(read_log(tmp_path / "log.jsonl")) == 9


def test_a_tracker_gets_flat_numbers(make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: received.append((step, values)))
    bench = make_bench(tmp_path)
    bench.total_steps = 2
    bench.run()
    assert [step for step, _ in received] == [1, 2, 2]
    assert {"loss", "gradient_norm", "learning_rate/prompt", "update_norm/low_rank"} <= set(received[0][1])
    assert received[2][1]["validation/accuracy"] == 0.0
    assert all(isinstance(value, int | float) for _, values in received for value in values.values())


TWO = ("vqa", "caption")  # their steps take turns


def test_of_several_tasks_each_has_the_tensors_of_its_own_best_validation(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(tmp_path, tasks=TWO)
    bench.scores = {"vqa": [10.0, 30.0, 20.0], "caption": [90.0, 80.0, 95.0]}
    result = bench.run()
    assert result.progress.best_step == {"vqa": 4, "caption": 6}
    assert result.progress.best_score == {"vqa": 30.0, "caption": 95.0}
    assert equal({name: result.best["caption"][name] for name in parameters(bench)}, parameters(bench))  # the last step
    shorter = make_bench(tmp_path / "shorter", tasks=TWO)
    shorter.change = lambda step, batch: stop_in(shorter, batch) if step == 3 else batch
    with pytest.raises(Interrupted):
        shorter.run()
    assert equal({name: result.best["vqa"][name] for name in parameters(shorter)}, parameters(shorter))


def test_tensors_that_are_no_task_s_best_any_more_are_not_kept(make_bench: MakeBench, tmp_path: Path) -> None:
    kept = []
    for end in (2, 4, 6):
        bench = make_bench(tmp_path / str(end), tasks=TWO, checkpoint_every=2)
        bench.total_steps = 8
        bench.scores = {"vqa": [10.0, 30.0, 40.0], "caption": [90.0, 80.0, 85.0]}
        bench.change = lambda step, batch, bench=bench, end=end: stop_in(bench, batch) if step == end - 1 else batch
        with pytest.raises(Interrupted):
            bench.run()
        checkpoint = load_newest_checkpoint(tmp_path / str(end) / "checkpoints")
        assert checkpoint is not None
        kept.append(sorted(checkpoint.best))
    assert kept == [[2], [2, 4], [2, 6]]


def test_patience_counts_validations_without_a_gain_of_any_task(
    make_bench: MakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(tmp_path, tasks=TWO, patience=2)
    bench.total_steps = 100
    bench.scores = {"vqa": [10.0, 9.0, 11.0, 9.0, 9.0], "caption": [10.0, 11.0, 9.0, 9.0, 9.0]}
    assert bench.run().progress.step == 10
    assert "No better accuracy in 2 validations: stopped early at step 10\n" in capsys.readouterr().err


def test_a_stop_for_want_of_gains_names_the_metrics_of_all_tasks(
    make_bench: MakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(tmp_path, tasks=TWO, patience=1)
    tasks = bench.settings.tasks
    bench.settings = replace(
        bench.settings, tasks=tasks | {"caption": replace(tasks["caption"], selection_metric="CIDEr")}
    )
    bench.run()
    assert "No better accuracy, CIDEr in 1 validations: stopped early at step 4\n" in capsys.readouterr().err


def test_a_line_of_the_log_has_the_mean_loss_of_each_task_in_its_window(make_bench: MakeBench, tmp_path: Path) -> None:
    make_bench(tmp_path / "each", tasks=TWO).run()
    make_bench(tmp_path / "three", tasks=TWO, log_every=3).run()
    each = losses(tmp_path / "each")
    lines = [record for record in read_log(tmp_path / "three" / "log.jsonl") if "loss" in record]
    assert [line["loss"] for line in lines] == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])
    assert [line["task_loss"] for line in lines] == [
        pytest.approx({"vqa": (each[0] + each[2]) / 2, "caption": each[1]}),
        pytest.approx({"vqa": each[4], "caption": (each[3] + each[5]) / 2}),
    ]
    # In a window of one task its loss is the loss.
    assert not any("task_loss" in record for record in read_log(tmp_path / "each" / "log.jsonl"))


def test_each_task_has_its_own_line_for_a_validation(
    make_bench: MakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(tmp_path, tasks=TWO)
    bench.total_steps = 2
    bench.scores = {"vqa": [12.5], "caption": [90.0]}
    bench.run()
    found = [record for record in read_log(tmp_path / "log.jsonl") if "validation" in record]
    assert [(one["step"], one["task"], one["validation"]["accuracy"]) for one in found] == [
        (2, "vqa", 12.5),
        (2, "caption", 90.0),
    ]
    text = capsys.readouterr().err
    assert "step 2: validation vqa accuracy 12.50, prompt norm " in text
    assert "step 2: validation caption accuracy 90.00, prompt norm " in text


def test_the_prompt_norm_of_several_prompts_is_their_mean(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(tmp_path, tasks=TWO, sharing="per_task")
    bench.total_steps = 2
    bench.run()
    norms = [float(one.prompt.detach().norm()) for one in bench.built.model.encoder.prompts().values()]
    assert read_log(tmp_path / "log.jsonl")[-1]["prompt_norm"] == pytest.approx(sum(norms) / 2)
    assert norms[0] != norms[1]


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
@pytest.mark.parametrize("stop", range(5))
def test_a_resumed_run_of_several_tasks_has_the_bits_of_the_uninterrupted_one(
    make_bench: MakeBench, tmp_path: Path, sharing: str, stop: int
) -> None:
    """Also where a task has not had its first turn yet, or where a window of the log is open."""
    options = {"tasks": TWO, "sharing": sharing, "log_every": 4}
    scores = {"vqa": [10.0, 30.0, 20.0], "caption": [90.0, 80.0, 95.0]}
    whole, stopped, resumed = (make_bench(tmp_path / name, **options) for name in ("whole", "stopped", "stopped"))
    for bench in (whole, stopped, resumed):
        bench.scores = scores
    expected = whole.run()
    stopped.change = lambda step, batch: stop_in(stopped, batch) if step == stop else batch
    with pytest.raises(Interrupted):
        stopped.run()
    result = resumed.run()
    assert resumed.given == list(range(stop + 1, 6))
    assert result.progress == expected.progress
    assert result.best.keys() == expected.best.keys() == set(TWO)
    assert all(equal(result.best[task], expected.best[task]) for task in TWO)
    assert equal(parameters(resumed), parameters(whole))
    assert [record.get("task_loss") for record in read_log(tmp_path / "stopped" / "log.jsonl")] == [
        record.get("task_loss") for record in read_log(tmp_path / "whole" / "log.jsonl")
    ]


def test_a_tracker_can_tell_the_validations_of_several_tasks_apart(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[dict[str, float]] = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: received.append(values))
    bench = make_bench(tmp_path, tasks=TWO, log_every=2)
    bench.total_steps = 2
    bench.scores = {"vqa": [12.5], "caption": [90.0]}
    bench.run()
    losses, vqa, caption = received
    assert {"loss", "task_loss/vqa", "task_loss/caption"} <= set(losses)
    assert vqa["vqa/validation/accuracy"] == 12.5
    assert caption["caption/validation/accuracy"] == 90.0
    assert not set(vqa) & set(caption)
