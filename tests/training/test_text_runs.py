"""Runs on text alone, from the command line: every family of backbones, few shots, and a start from another run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dept_vl import Predictor
from dept_vl.evaluate import main as evaluate
from dept_vl.train import main as train
from feature_extraction.errors import InputDataError, UsageError

TOY_DATA = Path(__file__).parents[1] / "toy_data"
SETTINGS = (
    *("method.budget_length=10", "method.prompt_length=4", "training.steps=4", "training.epochs=null"),
    *("training.evaluate_every=2", "training.checkpoint_every=2", "data.batch_size=2", "data.evaluation_batch_size=3"),
    "task.max_text_length=32",
)
SIZES = {"vocab_size": 29, "pad_token_id": 0, "eos_token_id": 1}


@pytest.fixture(scope="module")
def arguments(tiny_t5: Path) -> Callable[..., list[str]]:
    def make(output: Path, *more: str, task: str = "rte", backbone: Path = tiny_t5) -> list[str]:
        chosen = ["--task", task, "--data", str(TOY_DATA / task), "--output", str(output), "--backbone", str(backbone)]
        return [*chosen, *SETTINGS, *more]

    return make


@pytest.fixture(scope="module")
def source(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on another task; not to be changed."""
    folder = tmp_path_factory.mktemp("source") / "mrpc"
    train(arguments(folder, task="mrpc"))
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """A run's trained tensors by the names of its model, whatever its adapter file calls them."""
    from dept_vl.model.adapter import load_adapter

    return load_adapter(run / "adapter").tensors


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_another_family_goes_from_text_to_a_leaderboard_file(
    kind: str, arguments: Callable[..., list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, **SIZES))
    else:
        narrow = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertModel(BertConfig(max_position_embeddings=64, **narrow, **SIZES))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / kind)
    head = ["task.head=classification"] if kind == "bert" else ["task.constrained=true"]
    train(arguments(tmp_path / "run", *head, backbone=tmp_path / kind))
    evaluate(["--run", str(tmp_path / "run"), "--split", "official-test"])
    lines = (tmp_path / "run/evaluation/official-test/RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}
    predictor = Predictor.from_run(tmp_path / "run")
    assert predictor.answer([], "sentence1: a dog sentence2: a cat") in ("entailment", "not_entailment")
    with pytest.raises(InputDataError, match=r"^1 images were given; task rte takes 0$"):
        predictor.answer("photo.png", "sentence1: a dog")


def test_the_examples_of_few_shots_are_written_down_and_all_that_is_trained_on(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {}
    for name, more in (("a", []), ("b", ["training.seed=5"]), ("c", ["data.shots_seed=1"])):
        train(arguments(tmp_path / name, "--shots", "3", *more))
        chosen[name] = json.loads((tmp_path / name / "shots.json").read_text())["rte"]
    assert "3 training and" in capsys.readouterr().err
    assert len(chosen["a"]) == 3
    assert chosen["a"] == chosen["b"]  # the model's seed has no say
    assert chosen["a"] != chosen["c"]
    with pytest.raises(UsageError, match=r"^data\.shots is 99, but the training split has"):
        train(arguments(tmp_path / "d", "--shots", "99"))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(("parts", "carried"), [("prompt", {"prompt"}), ("all", {"prompt", "a", "b"})])
def test_a_run_starts_from_what_another_has_trained(
    source: Path,
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    parts: str,
    carried: set[str],
) -> None:
    still = [
        "training.steps=1",
        *(f"optimizer.{group}_{name}=0" for group in ("prompt", "low_rank") for name in ("lr",)),
    ]
    train(arguments(tmp_path / "run", "--init-from", str(source), f"method.init_parts={parts}", *still))
    trained, theirs = tensors(tmp_path / "run"), tensors(source)
    assert {
        name for name in ("prompt", "a", "b") if torch.equal(trained[f"prompt.{name}"], theirs[f"prompt.{name}"])
    } == (carried)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert len(record["source_digest"]) == 64


def test_a_run_is_not_gone_on_with_from_another_start(
    source: Path, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    train(arguments(tmp_path / "run", "--init-from", str(source)))
    with pytest.raises(ValueError, match="is the run of other settings") as raised:
        train(arguments(tmp_path / "run"))
    assert "method.init_from" in str(raised.value)


def test_features_for_a_task_without_images_are_refused(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        train(arguments(tmp_path / "run", "--features", "some.store"))
    assert str(raised.value) == "--features is of no use for rte, which has no images. Leave it out"


def test_a_task_with_images_needs_features(toy_vqa: Path, tiny_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--features is missing for vqa\. Give --features vqa=PATH too$"):
        train(["--task", "vqa", "--data", str(toy_vqa), "--output", str(tmp_path / "run"), "--backbone", str(tiny_t5)])


def test_a_text_run_holds_no_visual_tensors(source: Path) -> None:
    names = load_file(source / "adapter/adapter_model.safetensors")
    assert len(names) == 4  # P, A, B and the count of trained rows
    assert not [name for name in names if "visual" in name]


def test_text_and_images_train_together(
    train_arguments: Callable[..., list[str]], toy_vqa: Path, toy_store: Path, tmp_path: Path
) -> None:
    arguments = train_arguments(tmp_path / "run", "--data", f"rte={TOY_DATA / 'rte'}", "--features", f"vqa={toy_store}")
    for option, value in (("--task", "vqa,rte"), ("--data", f"vqa={toy_vqa}")):
        arguments[arguments.index(option) + 1] = value
    place = arguments.index("--features")
    del arguments[place : place + 2]  # the one for all tasks
    splits = "task.splits={train: train, validation: val, test: test}"
    arguments[arguments.index(splits)] = f"tasks.vqa.{splits.removeprefix('task.')}"
    train(arguments)
    evaluate(["--run", str(tmp_path / "run"), "--split", "test"])
    for task in ("vqa", "rte"):
        assert (tmp_path / "run" / "evaluation" / task / "test" / "metrics.json").is_file()
