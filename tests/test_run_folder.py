"""A run's folder: whose it is, what made it, and loading it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dept_vl.config import settings_from_yaml
from dept_vl.model.adapter import Adapter, load_adapter
from dept_vl.run_folder import (
    choose_task,
    compute_dtype,
    data_folder,
    load_run,
    open_run,
    publish_adapters,
    read_record,
    run_record,
    task_folder,
)
from dept_vl.settings import MethodSettings, Settings, TaskSettings, TrainingSettings
from dept_vl.types import Batch
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError, UsageError
from feature_extraction.store.layout import seal, unseal

SETTINGS = Settings(training=TrainingSettings(steps=5))
PAIR = replace(SETTINGS, tasks={"vqa": TaskSettings(), "nlvr2": TaskSettings("nlvr2", module="nlvr2")})


def record(**changes: Any) -> dict[str, Any]:
    made = run_record(
        command="python -m dept_vl.train",
        settings=SETTINGS,
        data={"vqa": Path("data")},
        features={"vqa": Path("store")},
        identity={"task": "vqa", "backbone.weight_digest": "ab" * 32},
    )
    return made | changes


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_new_run_has_its_settings_and_its_record(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    open_run(folder, SETTINGS, record())
    assert settings_from_yaml(folder / "config.yaml") == SETTINGS
    assert read_record(folder) == record()


def test_the_record_says_how_a_run_was_started_and_of_what() -> None:
    made = record()
    assert made["command"] == "python -m dept_vl.train"
    assert made["data"] == {"vqa": str(Path("data").resolve())}
    assert made["features"] == {"vqa": str(Path("store").resolve())}
    assert made["seed"] == 0
    assert made["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(made["versions"]["torch"])
    assert {"python", "dept_vl", "torch", "transformers", "accelerate", "timm", "numpy", "safetensors"} == set(
        made["versions"]
    )


def test_the_same_run_opens_again_and_nothing_is_written(tmp_path: Path) -> None:
    open_run(tmp_path, SETTINGS, record())
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    open_run(tmp_path, SETTINGS, record(command="another spelling of the same"))
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("left", [(), ("config.yaml",), ("config.yaml.partial",), ("config.yaml", "run.json.partial")])
def test_a_run_that_was_stopped_while_opening_opens_again(tmp_path: Path, left: tuple[str, ...]) -> None:
    for name in left:
        (tmp_path / name).write_text("half")
    open_run(tmp_path, SETTINGS, record())
    assert settings_from_yaml(tmp_path / "config.yaml") == SETTINGS


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError) as raised:
        open_run(tmp_path, SETTINGS, record())
    assert str(raised.value) == (
        f"--output {tmp_path} holds 'thesis.tex' but no run. Give a new folder, or one that training made"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_settings_are_refused_with_a_table(tmp_path: Path) -> None:
    open_run(tmp_path, SETTINGS, record())
    other = replace(SETTINGS, method=MethodSettings(rank=3), training=replace(SETTINGS.training, seed=1))
    with pytest.raises(IncompatibleError) as raised:
        open_run(tmp_path, other, record())
    assert str(raised.value) == (
        f"{tmp_path} is the run of other settings (expected: its own; got: this command's):\n"
        "  field          expected  got\n"
        "  method.rank    None      3\n"
        "  training.seed  0         1\n"
        "Give another --output, or the settings of that run to go on with it"
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"data": {"vqa": "/elsewhere"}}, "--data (vqa)"),
        ({"features": {"vqa": "/elsewhere"}}, "--features (vqa)"),
        ({"identity": {"task": "vqa", "backbone.weight_digest": "cd" * 32}}, "backbone.weight_digest"),
    ],
)
def test_other_data_features_and_weights_are_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    open_run(tmp_path, SETTINGS, record())
    with pytest.raises(IncompatibleError) as raised:
        open_run(tmp_path, SETTINGS, record(**change))
    assert str(raised.value).splitlines()[2].startswith(f"  {field}  ")


@pytest.mark.parametrize("content", [None, "{", "\udcff"])
def test_a_folder_without_a_readable_record_is_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputDataError) as raised:
        read_record(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path} is not the folder of a run: run.json cannot be read (")
    assert message.endswith("Give the --output folder of python -m dept_vl.train")


def test_an_adapter_is_published_whole_over_what_a_stopped_process_left(tmp_path: Path) -> None:
    (tmp_path / "adapter.partial").mkdir()
    (tmp_path / "adapter.partial" / "junk").write_text("")
    identity = {"task": "vqa", "method": "dept", "backbone.name": "tiny"}
    adapter = Adapter(identity, {}, {"prompt.prompt": torch.ones(2, 3)})
    assert publish_adapters(tmp_path, {"vqa": adapter}, SETTINGS) == tmp_path / "adapter"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter(tmp_path / "adapter").identity == identity
    assert not (tmp_path / "adapter" / "junk").exists()


def test_adapters_of_several_tasks_lie_in_folders_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "adapter.partial" / "gqa").mkdir(parents=True)
    adapters = {
        task: Adapter(
            {"task": "vqa,nlvr2", "method": "dept", "backbone.name": "tiny"}, {}, {"x": torch.full((2,), value)}
        )
        for task, value in (("vqa", 1.0), ("nlvr2", 2.0))
    }
    assert publish_adapters(tmp_path, adapters, PAIR) == tmp_path / "adapter"
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["nlvr2", "vqa"]
    for task, adapter in adapters.items():
        assert torch.equal(load_adapter(tmp_path / "adapter" / task).tensors["x"], adapter.tensors["x"])


def test_a_run_of_one_task_has_no_folders_for_it(tmp_path: Path) -> None:
    assert task_folder(tmp_path, SETTINGS, "vqa") == tmp_path
    assert task_folder(tmp_path, PAIR, "vqa") == tmp_path / "vqa"


def test_the_task_of_a_run_of_one_need_not_be_named() -> None:
    assert choose_task(Path("run"), SETTINGS, None) == choose_task(Path("run"), SETTINGS, "vqa") == "vqa"
    assert choose_task(Path("run"), PAIR, "nlvr2") == "nlvr2"


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ("PAIR", None, "run has several tasks; name one of them, as in --task vqa: vqa, nlvr2"),
        ("PAIR", "nlvr", "run has no task 'nlvr'. Did you mean 'nlvr2'? It has: vqa, nlvr2"),
        ("SETTINGS", "caption", "run has no task 'caption'. It has: vqa"),
    ],
)
def test_a_task_that_is_not_there_or_not_named_is_refused(settings: str, task: str | None, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        choose_task(Path("run"), {"PAIR": PAIR, "SETTINGS": SETTINGS}[settings], task)
    assert str(raised.value) == message


@pytest.mark.parametrize("change", [{"data": {"vqa": "v"}}, {"data": {"vqa": "v", "nlvr2": "n", "gqa": "g"}}])
def test_data_of_other_tasks_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    paths = {"vqa": "v", "nlvr2": "n"}
    open_run(tmp_path, PAIR, record(data=paths, features=paths))
    with pytest.raises(IncompatibleError, match=r"\n  --data \((nlvr2|gqa)\)  "):
        open_run(tmp_path, PAIR, record(features=paths, **change))


def test_settings_of_one_of_the_tasks_are_named_in_the_table(tmp_path: Path) -> None:
    open_run(tmp_path, PAIR, record())
    other = replace(PAIR, tasks=PAIR.tasks | {"nlvr2": replace(PAIR.tasks["nlvr2"], num_beams=4)})
    with pytest.raises(IncompatibleError, match=r"\n  tasks\.nlvr2\.num_beams  1         4\n"):
        open_run(tmp_path, other, record())


def test_a_run_of_two_tasks_is_loaded_for_one_of_them(
    finished_pair: Path, toy_vqa: Path, toy_nlvr2: Path, make_batch: Callable[..., Batch]
) -> None:
    for task, data in (("vqa", toy_vqa), ("nlvr2", toy_nlvr2)):
        loaded = load_run(finished_pair, task=task)
        assert list(loaded.settings.tasks) == [task]
        assert loaded.settings.task.name == loaded.task.name == task
        assert loaded.data == data
        tensors = load_adapter(finished_pair / "adapter" / task).tensors
        for name, prompt in loaded.model.encoder.prompts().items():
            assert torch.equal(prompt.prompt, tensors[f"{name}.prompt"])
        images = loaded.settings.task.images_per_example
        assert len(loaded.model.answer(make_batch((5, 3), task=task, images=images))) == 2


def test_an_adapter_knows_the_answers_of_its_tasks(finished_pair: Path) -> None:
    assert load_run(finished_pair, task="nlvr2").adapter.answers == {"nlvr2": ["true", "false"]}


def test_a_run_of_two_tasks_is_not_loaded_without_a_name(finished_pair: Path) -> None:
    with pytest.raises(UsageError, match="has several tasks; name one of them, as in --task vqa: vqa, nlvr2"):
        load_run(finished_pair)


def test_a_loaded_run_has_the_best_tensors_and_waits_for_questions(finished_run: Path, toy_vqa: Path) -> None:
    loaded = load_run(finished_run)
    assert loaded.settings == settings_from_yaml(finished_run / "config.yaml")
    assert loaded.task.name == "vqa"
    assert loaded.data == toy_vqa
    assert not loaded.model.training
    tensors = load_adapter(finished_run / "adapter").tensors
    assert loaded.model.encoder.prompt is not None
    assert torch.equal(loaded.model.encoder.prompt.prompt, tensors["prompt.prompt"])
    assert loaded.trainable.own == 160


def test_two_loads_give_the_same_function(finished_run: Path, make_batch: Callable[..., Batch]) -> None:
    batch = make_batch((5, 3))
    losses = [load_run(finished_run).model.loss(batch).loss for _ in range(2)]
    assert torch.equal(*losses)


def test_an_unfinished_run_is_refused_with_its_command(finished: Path) -> None:
    shutil.rmtree(finished / "adapter")
    with pytest.raises(InputDataError) as raised:
        load_run(finished)
    assert str(raised.value) == (
        f"{finished} has no adapter yet: training has not finished. Go on with it by its own command: "
        f"{read_record(finished)['command']}"
    )


def test_settings_of_the_answers_may_change(finished_run: Path) -> None:
    loaded = load_run(finished_run, overrides=["task.num_beams=3", "data.evaluation_batch_size=1"])
    assert loaded.settings.task.num_beams == 3
    assert loaded.settings.data.evaluation_batch_size == 1


@pytest.mark.parametrize(
    ("override", "row"),
    [
        ("method.low_rank_scale=official", "method.low_rank_scale  paper     official"),
        ("visual.position_rule=vl_t5", "visual.position_rule  joint     vl_t5"),
        ("visual.area=vl_t5", "visual.area  true      vl_t5"),
        ("method.prompt_length=3", "method.prompt_length  4         3"),
    ],
)
def test_settings_that_the_tensors_were_trained_with_may_not(finished_run: Path, override: str, row: str) -> None:
    with pytest.raises(IncompatibleError) as raised:
        load_run(finished_run, overrides=[override])
    lines = str(raised.value).splitlines()
    assert lines[0] == (
        f"The adapter in {finished_run / 'adapter'} was trained with other settings (expected: its own; got: these):"
    )
    assert lines[2].strip() == row
    assert lines[-1] == "Leave these settings as they are: what was trained is of use with them only"


def test_another_text_length_does_not_fit_the_tensors(finished_run: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"prompt\.a +\(9, 3\) +\(8, 4\)"):
        load_run(finished_run, overrides=["task.max_text_length=9"])


def test_another_backbone_is_refused(finished_run: Path) -> None:
    with pytest.raises(IncompatibleError) as raised:
        load_run(finished_run, overrides=["backbone.name=t5-mini"])
    fields = [line.split()[0] for line in str(raised.value).splitlines()[2:-1]]
    assert fields == [
        "backbone.name",
        "backbone.dtype",
        "backbone.weight_digest",
        "backbone.tokenizer_digest",
        "backbone.hidden_size",
    ]


def test_another_store_is_refused(finished_run: Path, toy_store: Path, tmp_path: Path) -> None:
    """The same images by another backbone."""
    moved = Path(shutil.copytree(toy_store, tmp_path / "moved"))
    load_run(finished_run, features=moved)  # the same store elsewhere is none other
    manifest = unseal((moved / "manifest.json").read_bytes())
    assert manifest is not None
    manifest["identity"]["weight_digest"] = "1" * 64
    (moved / "manifest.json").write_bytes(seal(manifest, indent=1))
    with pytest.raises(IncompatibleError, match=r"features\.weight_digest"):
        load_run(finished_run, features=moved)


def test_moved_data_is_found_where_it_is_said_to_be(finished_run: Path, tmp_path: Path) -> None:
    assert load_run(finished_run, data=tmp_path).data == tmp_path


def test_a_damaged_adapter_is_refused(finished: Path) -> None:
    path = finished / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors: SHA-256 expected"):
        load_run(finished)


def test_a_damaged_store_is_refused(finished_run: Path, toy_store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toy_store, tmp_path / "store"))
    shard = next(copy.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DamagedError, match=r"shard-00000\.safetensors is damaged"):
        load_run(finished_run, features=copy)


def test_the_record_is_json_that_a_person_can_read(finished_run: Path) -> None:
    text = (finished_run / "run.json").read_text()
    assert len(text.splitlines()) > 10
    assert json.loads(text)["identity"]["task"] == "vqa"


@pytest.mark.parametrize(
    ("precision", "method", "dtype"),
    [
        ("fp32", "dept", torch.float32),
        ("bf16", "dept", torch.bfloat16),
        ("bf16", "visual_only", torch.bfloat16),
        ("bf16", "lora", torch.bfloat16),
        ("bf16", "ln_tuning", torch.float32),
        ("bf16", "full", torch.float32),
    ],
)
def test_frozen_weights_are_bf16_where_asked_and_trained_ones_never(
    precision: str, method: str, dtype: torch.dtype
) -> None:
    settings = Settings(method=MethodSettings(name=method), training=TrainingSettings(precision=precision))
    assert compute_dtype(settings) == dtype


def test_a_run_that_names_no_data_asks_for_it() -> None:
    with pytest.raises(UsageError) as raised:
        data_folder({"data": {}}, "cola")
    assert str(raised.value) == (
        "The run was not trained here and names no data for cola. Give the data set: --data DIR"
    )
