"""The training command: its checks, its messages, and every method through to an evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from dept_vl import evaluate, evaluate_run
from dept_vl.command_line import command_text, run
from dept_vl.config import settings_from_yaml
from dept_vl.model.adapter import load_adapter
from dept_vl.model.trainable import TrainableCount
from dept_vl.settings import METHODS, TaskSettings
from dept_vl.tasks.task import Task
from dept_vl.train import main
from dept_vl.training import run as training_run
from dept_vl.training import task_data
from dept_vl.training.loss_log import read_log
from dept_vl.types import Example, Scores
from feature_extraction.errors import InputDataError

TrainArguments = Callable[..., list[str]]

PROMPTED = ("dept", "prompt", "adept", "dept_adept", "p_tuning", "mpt")  # nothing of theirs is in the backbone
TWO_STEPS = "training.steps=2"


def refused(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str], *, output: Path, written: bool = False
) -> str:
    """The last message of a command that is refused before it writes anything."""
    capsys.readouterr()
    assert run(main, arguments) == code
    assert output.exists() is written
    return capsys.readouterr().err


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"bitfit"}))  # a T5 has no biases
def test_every_method_trains_goes_on_after_a_stop_and_is_evaluated(
    train_arguments: TrainArguments, tmp_path: Path, method: str
) -> None:
    folder = tmp_path / "run"
    arguments = train_arguments(folder, "training.steps=4", "method.budget_length=20", method=method)
    assert run(main, arguments) == 0
    path = folder / "adapter" / "adapter_model.safetensors"
    whole, tensors = path.read_bytes(), set(load_file(path))
    prompt = {"prompt.prompt", "prompt.a", "prompt.b", "prompt.trained_length"}
    own = {"dept": prompt, "dept_lora": prompt, "prompt": {"prompt.prompt"}}
    rest = {name for name in tensors if not name.startswith(("visual_embedding.", "backbone."))}
    assert rest == own.get(method, rest)
    assert bool(rest) is (method in (*PROMPTED, "dept_lora"))
    assert any(name.startswith("backbone.") for name in tensors) is (method not in (*PROMPTED, "visual_only"))
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(max((folder / "checkpoints").glob("step-*")))
    assert run(main, arguments) == 0
    assert path.read_bytes() == whole
    assert evaluate_run(folder, "test")[0].scores.metrics["n"] == 7


def test_a_budget_chooses_the_sizes(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, line in (
        ("dept", "DePT: m=4 s=8 d=16 r=8: 256 of 260 parameters"),
        ("lora", "LoRA: rank 2 in q and v of the encoder's layers: 256 of 260 parameters"),
    ):
        assert run(main, train_arguments(tmp_path / method, "--budget", "260", "--dry-run", method=method)) == 0
        assert capsys.readouterr().err.splitlines()[0] == line
    assert refused(
        train_arguments(tmp_path / "lora", "--budget", "100", method="lora"), 2, capsys, output=tmp_path / "lora"
    ) == (
        "error: LoRA cannot meet the budget of 100 parameters: the nearest setting, rank 1 in q and v of the encoder's "
        "layers, costs 128. Raise method.budget to that or choose another method\n"
    )


def test_reading_processes_change_no_byte(train_arguments: TrainArguments, finished_run: Path, tmp_path: Path) -> None:
    assert run(main, train_arguments(tmp_path / "run", "data.workers=2")) == 0
    tensors = Path("adapter") / "adapter_model.safetensors"
    assert (tmp_path / "run" / tensors).read_bytes() == (finished_run / tensors).read_bytes()


def test_features_kept_on_the_device_change_no_byte(
    train_arguments: TrainArguments, finished_run: Path, tmp_path: Path
) -> None:
    assert run(main, train_arguments(tmp_path / "run", "data.resident_features=on")) == 0
    tensors = Path("adapter") / "adapter_model.safetensors"
    assert (tmp_path / "run" / tensors).read_bytes() == (finished_run / tensors).read_bytes()


def test_lean_layers_have_the_librarys_loss_curve_and_answers(train_arguments: TrainArguments, tmp_path: Path) -> None:
    losses = []
    for engine in ("library", "lean"):
        # At rates that do not blow up the last bits: those of the toy runs double such a difference at every step.
        rates = [f"optimizer.{group}_lr=0.001" for group in ("prompt", "low_rank", "visual")]
        assert run(main, train_arguments(tmp_path / engine, f"backbone.engine={engine}", *rates)) == 0
        log = read_log(tmp_path / engine / "log.jsonl")
        losses.append([record["loss"] for record in log if "loss" in record])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    # Their adapters are one kind: the library's layers answer with what the lean ones trained, and the other way round.
    answers = []
    for number, engine in enumerate(("library", "lean")):
        output = tmp_path / f"answers {number}"
        evaluate_run(tmp_path / "lean", "test", output, [f"backbone.engine={engine}"])
        answers.append((output / "metrics.json").read_text())
    assert answers[0] == answers[1]


def test_the_run_s_folder_says_what_was_done(
    train_arguments: TrainArguments, finished_run: Path, toy_vqa: Path
) -> None:
    arguments = train_arguments(finished_run)
    record = json.loads((finished_run / "run.json").read_text())
    assert record["command"] == command_text("dept_vl.train", arguments)
    assert record["data"] == {"vqa": str(toy_vqa)}
    assert record["identity"]["features.backbone"] == "toy"
    settings = settings_from_yaml(finished_run / "config.yaml")
    assert settings.training.steps == 7
    assert settings.features.shard_size == 8  # the store's own
    steps = [entry["step"] for entry in read_log(finished_run / "log.jsonl")]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6, 7, 7]  # with the validations after 3, 6 and 7


def test_messages_tell_sizes_counts_and_the_best_step(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, train_arguments(tmp_path / "run")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "DePT: l=10 m=4 s=8 d=16 r=4: 160 of 160 parameters",
        "trainable parameters: 160 of dept itself + 320 of the visual embedding = 480 (4.20 % of 11,440)",
        "14 training and 6 validation examples, 7 steps of 4 (2.3 epochs)",
    ]
    assert lines[-2].startswith("Best step 3: accuracy ")
    assert lines[-1] == f"Adapter: {tmp_path / 'run' / 'adapter'}"


@pytest.mark.parametrize(("epochs", "steps"), [("2", 6), ("0.5", 2), ("0.1", 1)])
def test_epochs_are_counted_in_whole_steps(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: str, steps: int
) -> None:
    arguments = train_arguments(tmp_path / "run", "training.steps=null", f"training.epochs={epochs}", "--dry-run")
    assert run(main, arguments) == 0
    assert f", {steps} steps of 4 (" in capsys.readouterr().err


def test_validation_on_a_part_takes_the_same_examples_for_every_seed(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    original = task_data._choose

    def watched(*arguments: object) -> object:
        examples = original(*arguments)  # type: ignore[arg-type]
        chosen.append([example.example_id for example in examples])
        return examples

    monkeypatch.setattr(task_data, "_choose", watched)
    for seed in (0, 1):
        arguments = train_arguments(tmp_path / "run", "training.validation_examples=3", f"training.seed={seed}")
        assert run(main, [*arguments, "--dry-run"]) == 0
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert len(chosen[0]) == 3
    assert "14 training and 3 validation examples" in capsys.readouterr().err


def test_a_dry_run_checks_everything_and_writes_nothing(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, train_arguments(tmp_path / "run", "--dry-run")) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "Dry run: everything fits together; nothing was written"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_questions_without_features_are_refused(
    train_arguments: TrainArguments,
    toy_vqa: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dry: tuple[str, ...],
) -> None:
    data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
    for path in data.glob("*_val_*"):
        path.write_text(path.read_text().replace('"image_id": 2', '"image_id": 7'))
    message = refused(train_arguments(tmp_path / "run", *dry, data=data), 3, capsys, output=tmp_path / "run")
    assert f"error: Split 'validation' of {data}: 1 of 6 examples refer to 1 images without features in " in message


def test_a_store_that_is_none_or_damaged_is_refused(
    train_arguments: TrainArguments, toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    message = refused(train_arguments(output, store=tmp_path / "none"), 3, capsys, output=output)
    assert f"error: {tmp_path / 'none'} is no feature store" in message
    store = Path(shutil.copytree(toy_store, tmp_path / "store"))
    shard = next(store.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    message = refused(train_arguments(output, store=store), 5, capsys, output=output)
    assert f"error: {shard} is damaged" in message


def test_an_unknown_backbone_is_refused(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert "error: No text backbone 'no/t5'" in refused(
        train_arguments(output, backbone="no/t5"), 3, capsys, output=output
    )


def test_overspending_the_budget_is_refused(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    message = refused(train_arguments(output, "method.rank=5"), 2, capsys, output=output)
    assert "error: method.rank (r) is 5: with m=4, s=8, d=16 that is 184 parameters, but l=10 allows 160" in message


def test_features_settings_are_refused_since_the_store_has_its_own(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override in ("features.image_size=64", "features=clip_rn101"):
        message = refused(train_arguments(tmp_path / "run", override), 2, capsys, output=tmp_path / "run")
        assert message == (
            f"error: {override!r}: training takes these settings from the feature store. "
            "Give them to python -m dept_vl.extract\n"
        )


def test_training_data_without_answers_is_refused(
    train_arguments: TrainArguments, toy_vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
    for name in ("v2_toy_test_annotations.json", "v2_toy_train_annotations.json"):
        (data / name).unlink()
    splits = "task.splits={train: test, validation: val}"
    for head in ("generation", "classification"):  # told before there is a vocabulary to be made
        arguments = train_arguments(tmp_path / "run", splits, f"task.head={head}", data=data)
        message = refused(arguments, 3, capsys, output=tmp_path / "run")
        assert message.startswith("error: ")
        assert "annotations" in message


def test_examples_of_which_none_has_a_target_are_refused() -> None:
    examples = [Example("q", "what ?", ())] * 3
    with pytest.raises(InputDataError) as raised:
        task_data._check_answers(examples, "train", TaskSettings(splits={"train": "test2015"}), Path("data"))
    assert str(raised.value) == (
        "None of the 3 examples of split 'train' (test2015) of data has an answer to train on. Give the annotations "
        "too, or set task.splits.train to a split that has them"
    )
    with pytest.raises(
        InputDataError, match=r"split 'validation' \(None\) of data has an answer to choose the best step"
    ):
        task_data._check_answers(examples, "validation", TaskSettings(), Path("data"))


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("cider", "its examples have no reference answers, or the task has no such metric"),
        ("number", "no example has an answer_type of this kind"),
    ],
)
def test_a_metric_that_the_validation_does_not_give_is_refused(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, reason: str
) -> None:
    assert run(main, train_arguments(tmp_path / "run", TWO_STEPS, f"task.selection_metric={metric}")) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        f"error: task.selection_metric is {metric!r}, which the validation split of vqa does not give ({reason}). "
        "Give annotated validation data, or choose one of: accuracy, yes_no, other, "
    )
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_validation_may_leave_out_what_takes_long(
    train_arguments: TrainArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = task_data.load_task

    def load_task(settings: TaskSettings) -> Task:
        return replace(original(settings), score_validation=lambda *_: Scores({"accuracy": 12.5}, {}))

    monkeypatch.setattr(task_data, "load_task", load_task)
    assert run(main, train_arguments(tmp_path / "run", TWO_STEPS)) == 0
    found = [record["validation"] for record in read_log(tmp_path / "run" / "log.jsonl") if "validation" in record]
    assert found == [{"accuracy": 12.5}]


@pytest.mark.parametrize(
    "choice", ["task.head=classification", "task.constrained=true", "task.head=first_step"], ids=lambda one: one[5:]
)
def test_an_answer_vocabulary_comes_from_the_training_examples_and_lies_in_the_adapter(
    train_arguments: TrainArguments, make_vqa: Callable[..., Path], tmp_path: Path, choice: str
) -> None:
    folder = tmp_path / "run"
    data = make_vqa({"train": 12, "val": 6, "test": 7})
    assert run(main, train_arguments(folder, TWO_STEPS, choice, "task.answer_count=4", data=data)) == 0
    answers = load_adapter(folder / "adapter").answers
    assert answers == {"vqa": ["no", "red", "three", "two"]}  # each is the answer of two questions
    assert run(evaluate.main, ["--run", str(folder), "--split", "test"]) == 0
    rows = json.loads((folder / "evaluation" / "test" / "v2_OpenEnded_test_dept_results.json").read_text())
    assert {row["answer"] for row in rows} <= set(answers["vqa"])


def test_an_answer_file_is_read_from_the_data_folder(
    train_arguments: TrainArguments, toy_vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
    choice = ("task.head=classification", "task.answer_file=answers.json")
    message = refused(train_arguments(tmp_path / "run", *choice, data=data), 3, capsys, output=tmp_path / "run")
    assert f"No file {data / 'answers.json'}" in message
    (data / "answers.json").write_text('["yes", "no"]')
    assert run(main, train_arguments(tmp_path / "run", TWO_STEPS, *choice, data=data)) == 0
    assert load_adapter(tmp_path / "run" / "adapter").answers == {"vqa": ["yes", "no"]}


def test_too_little_space_for_the_checkpoints_is_refused(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    message = refused(train_arguments(tmp_path / "run"), 6, capsys, output=tmp_path / "run")
    assert message == (
        f"error: Too little space for the checkpoints of {tmp_path / 'run'}: 0.00 GB needed, 0.00 GB free. Free some, "
        "or give an --output on another disk\n"
    )


@pytest.mark.parametrize("tasks", [1, 4])
def test_the_space_for_checkpoints_counts_three_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tasks: int
) -> None:
    """Model, best model of each task and two moments in fp32."""
    trainable = TrainableCount(own=900_000, visual=0, heads=100_000, total=1)
    needed = 3 * 4 * (3 + tasks) * 1_000_000
    for free, enough in ((1.11 * needed, True), (1.09 * needed, False)):
        monkeypatch.setattr(training_run.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        if enough:
            training_run._check_disk(tmp_path / "runs" / "new", trainable, tasks=tasks)
        else:
            with pytest.raises(OSError, match=rf"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"):
                training_run._check_disk(tmp_path / "runs" / "new", trainable, tasks=tasks)


def test_other_settings_in_the_folder_of_a_run_are_refused(
    train_arguments: TrainArguments, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    message = refused(train_arguments(finished_run, "training.seed=5"), 4, capsys, output=finished_run, written=True)
    assert f"error: {finished_run} is the run of other settings (expected: its own; got: this command's):\n" in message
    assert "  training.seed  0         5\n" in message
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def test_a_tracker_that_is_not_installed_is_refused(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run.importlib.util, "find_spec", lambda name: None)
    message = refused(train_arguments(tmp_path / "run", "training.tracker=wandb"), 2, capsys, output=tmp_path / "run")
    assert message == (
        "error: training.tracker is 'wandb', but the package wandb is not installed. Run: pip install wandb, "
        "or leave this setting out: log.jsonl is always written\n"
    )


def test_a_tracker_gets_the_numbers(train_arguments: TrainArguments, tmp_path: Path) -> None:
    assert run(main, train_arguments(tmp_path / "run", TWO_STEPS, "training.tracker=tensorboard")) == 0
    assert list((tmp_path / "run" / "dept_vl").glob("events.out.tfevents.*"))
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 3


def test_a_tracker_that_does_not_start_stops_nothing(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(Accelerator, "init_trackers", unreachable)
    assert run(main, train_arguments(tmp_path / "run", TWO_STEPS, "training.tracker=tensorboard")) == 0
    assert (
        "Tracker tensorboard did not start (no route); log.jsonl is written all the same\n" in capsys.readouterr().err
    )


def test_the_command_line_is_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--task", "vqa"]) == 2
    assert capsys.readouterr().err == (
        "error: the following arguments are required: --data, --output. See: python -m dept_vl.train --help\n"
    )


def test_options_and_settings_may_come_in_any_order(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(tmp_path / "run")
    mixed = ["training.seed=3", *arguments[:4], "data.batch_size=2", *arguments[4:], "--dry-run"]
    assert run(main, mixed) == 0
    assert "7 steps of 4 (" in capsys.readouterr().err  # the later data.batch_size counts


def test_what_is_wrong_with_both_splits_is_said_at_once(
    train_arguments: Callable[..., list[str]], toy_vqa: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
    for split in ("train", "val"):
        (data / f"v2_toy_{split}_annotations.json").unlink()
    with pytest.raises(InputDataError, match=r"_train_annotations\.json.* Also: .*_val_annotations\.json"):
        main(train_arguments(tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()
