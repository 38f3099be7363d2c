"""Published DePT checkpoints: converted exactly, or refused by the name of what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from dept_vl.command_line import run
from dept_vl.config import load_settings, settings_from_yaml
from dept_vl.evaluate import main as evaluate
from dept_vl.import_official import OfficialAdapter, main, settings_for
from dept_vl.model.adapter import load_adapter
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.run_folder import load_run
from dept_vl.settings import BackboneSettings
from dept_vl.types import Batch

TOY_COLA = Path(__file__).parent / "toy_data" / "cola"
M, R, S, D = 5, 3, 12, 16
CONFIG = {
    "base_model_name_or_path": "t5-base",
    "lora_alpha": 8,
    "max_length": S,
    "num_transformer_submodules": 1,
    "num_virtual_tokens": M,
    "peft_type": "PROMPT_TUNING_LORA",
    "prompt_tuning_init": "TEXT",
    "prompt_tuning_init_text": "Classify this text is postive or not:",
    "r": R,
    "task_type": "SEQ_2_SEQ_LM",
    "token_dim": D,
}
TENSORS = {
    "prompt_embeddings": (M, D),
    "prompt_encoder.lora_embedding_A": (S, R),
    "prompt_encoder.lora_embedding_B": (R, D),
}
P_NAME, A_NAME, B_NAME = TENSORS
Official = Callable[..., Path]


@pytest.fixture
def official(tmp_path: Path) -> Official:
    """Folders as the authors' code writes them, with tensors of the size of theirs: P large, A and B small."""

    def make(name: str = "official", *, without: tuple[str, ...] = (), **config: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in TENSORS.items()}
        tensors[P_NAME] *= 30
        torch.save(
            {name: value for name, value in tensors.items() if name not in without}, folder / "adapter_model.bin"
        )
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
        return folder

    return make


def arguments(adapter: Path, backbone: Path | str, output: Path, *more: str) -> list[str]:
    return ["--adapter", str(adapter), "--backbone", str(backbone), "--output", str(output), *more]


def refused(given: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a conversion that writes nothing."""
    output = Path(given[given.index("--output") + 1])
    before = sorted(output.rglob("*"))
    assert run(main, given) == code
    assert sorted(output.rglob("*")) == before
    return " ".join(capsys.readouterr().err.split())


def saved(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")


class TestConversion:
    def test_the_tensors_are_the_published_ones_under_our_names(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(main, arguments(official(), tiny_t5, tmp_path / "out")) == 0
        adapter, published = load_adapter(tmp_path / "out"), saved(tmp_path / "official")
        assert set(adapter.tensors) == {"prompt.prompt", "prompt.a", "prompt.b", "prompt.trained_length"}
        for ours, theirs in (("prompt.prompt", P_NAME), ("prompt.a", A_NAME), ("prompt.b", B_NAME)):
            assert torch.equal(adapter.tensors[ours], published[theirs])
        assert adapter.tensors["prompt.trained_length"] == S
        method = adapter.settings["method"]
        assert (method["name"], method["low_rank_scale"], method["rank"]) == ("dept", "official", R)
        assert adapter.settings["tasks"]["unnamed"]["max_text_length"] == S
        assert capsys.readouterr().err.splitlines() == [
            "P 5 x 16, A 12 x 3 (12 rows trained), B 3 x 16, scale 8/sqrt(3) = 4.6188",
            f"Trained on t5-base. The checkpoint has no digest, so whether {tiny_t5} is that is not checked",
            f"Wrote {tmp_path / 'out'}",
        ]

    def test_rows_past_the_trained_length_add_nothing(self, official: Official, tiny_t5: Path, tmp_path: Path) -> None:
        main(arguments(official(), tiny_t5, tmp_path / "out", "--trained-length", "7"))
        tensors, published = load_adapter(tmp_path / "out").tensors, saved(tmp_path / "official")
        assert tensors["prompt.trained_length"] == 7
        assert torch.equal(tensors["prompt.a"][:7], published[A_NAME][:7])
        assert not tensors["prompt.a"][7:].any()

    @pytest.mark.parametrize("wanted", ["0", "13", "-1"])
    def test_an_impossible_trained_length_is_refused(
        self, official: Official, tiny_t5: Path, tmp_path: Path, wanted: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(arguments(official(), tiny_t5, tmp_path / "out", f"--trained-length={wanted}"), 2, capsys)
        assert message == f"error: --trained-length is {wanted}, but A has 12 rows. Give 1 to 12"

    def test_with_a_task_it_is_a_run_that_can_be_evaluated(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "run"
        main(arguments(official(), tiny_t5, output, "--task", "cola"))
        settings = settings_from_yaml(output / "config.yaml")
        assert (settings.method.prompt_length, settings.method.rank, settings.task.max_text_length) == (M, R, S)
        assert settings.training.steps == 40_000  # the published recipe of the task
        assert settings.method.prompt_text == "Classify this text is postive or not:"
        assert f"evaluate it with --run {output} --data DIR" in capsys.readouterr().err
        assert run(evaluate, ["--run", str(output), "--split", "test", "--data", str(TOY_COLA)]) == 0
        scores = json.loads((output / "evaluation" / "test" / "metrics.json").read_text())
        assert "matthews" in scores

    def test_a_task_without_a_published_run_takes_the_plain_settings(
        self, official: Official, tiny_t5: Path, tmp_path: Path
    ) -> None:
        main(arguments(official(prompt_tuning_init="RANDOM"), tiny_t5, tmp_path / "run", "--task", "scitail"))
        settings = settings_from_yaml(tmp_path / "run" / "config.yaml")
        assert (settings.task.name, settings.task.max_text_length, settings.method.prompt_init) == (
            "scitail",
            S,
            "normal",
        )

    @pytest.mark.parametrize(("task", "m", "r", "s"), [("cola", 80, 15, 256), ("multirc", 60, 30, 348)])
    def test_the_published_sizes_give_the_settings_of_the_published_recipe(
        self, task: str, m: int, r: int, s: int
    ) -> None:
        config = CONFIG | {"num_virtual_tokens": m, "r": r, "max_length": s, "token_dim": 768}
        tensors = (torch.zeros(m, 768), torch.zeros(s, r), torch.zeros(r, 768))
        settings = settings_for(OfficialAdapter(config, *tensors), backbone="t5-base", task=task)
        assert settings == load_settings({"task": task, "recipe": f"dept_{task}", "backbone": "t5-base"}, [])


class TestArithmetic:
    @pytest.mark.parametrize("lengths", [(12, 12), (9, 4, 1)], ids=["full", "shorter"])
    @pytest.mark.parametrize("trimmed", [False, True], ids=["padded", "trimmed"])
    def test_our_logits_are_those_of_the_official_formula(
        self,
        official: Official,
        tiny_t5: Path,
        tmp_path: Path,
        make_batch: Callable[..., Batch],
        lengths: tuple[int, ...],
        trimmed: bool,
    ) -> None:
        main(arguments(official(), tiny_t5, tmp_path / "run", "--task", "cola"))
        loaded = load_run(tmp_path / "run", data=tmp_path)
        batch = make_batch(lengths, images=0, task="cola")
        padded = make_batch(lengths, images=0, task="cola", pad=S - max(lengths))
        assert padded.text_ids.shape[1] == S
        t5 = load_backbone(BackboneSettings(name=str(tiny_t5))).model
        tensors = {name: value.double() for name, value in saved(tmp_path / "official").items()}
        # In float64: sums over fewer zeros are rounded otherwise.
        expected = official_logits(t5.double(), tensors, padded)
        found = our_logits(loaded.model.double(), batch if trimmed else padded)
        assert expected.std() > 0.1
        assert (found - expected).abs().max() <= 1e-9

    def test_the_update_is_a_part_of_it(
        self, official: Official, tiny_t5: Path, make_batch: Callable[..., Batch]
    ) -> None:
        t5, tensors = load_backbone(BackboneSettings(name=str(tiny_t5))).model, saved(official())
        batch = make_batch((12, 12), images=0)
        without = tensors | {B_NAME: torch.zeros(R, D)}
        assert (official_logits(t5, tensors, batch) - official_logits(t5, without, batch)).abs().max() > 1e-3


@torch.no_grad()
def official_logits(t5: Any, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
    """What the authors' code computes of texts that are padded on the right to s (their peft_model.py)."""
    prompt, a, b = (tensors[name] for name in TENSORS)
    embedded = t5.get_input_embeddings()(batch.text_ids)
    embedded = embedded + (8 / math.sqrt(a.shape[1])) * (a @ b).repeat(len(embedded), 1, 1)
    embedded = torch.cat([prompt.repeat(len(embedded), 1, 1), embedded], dim=1)
    mask = torch.cat([torch.ones(len(embedded), len(prompt)), batch.text_mask], dim=1)
    logits: Tensor = t5(inputs_embeds=embedded, attention_mask=mask, labels=batch.target_ids).logits
    return logits


@torch.no_grad()
def our_logits(model: Any, batch: Batch) -> Tensor:
    states, mask = model.encoder(batch)
    logits: Tensor = model.heads[batch.task].family.target_logits(model.backbone, states, mask, batch)
    return logits


class Leaves:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


class TestRefusals:
    def test_a_part_is_refused_by_the_name_of_what_is_missing(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = official(without=(A_NAME, B_NAME))
        assert refused(arguments(folder, tiny_t5, tmp_path / "out"), 3, capsys) == (
            f"error: {folder / 'adapter_model.bin'} is only a part of a DePT adapter: prompt_encoder.lora_embedding_A "
            "(12 x 3) and prompt_encoder.lora_embedding_B (3 x 16) missing. The official code first saved the prompt "
            "alone, and nothing can stand in for the rest. Choose another checkpoint, such as cola or sst2"
        )
        for name in TENSORS:
            folder = official(name, without=(name,))
            assert f"adapter: {name} (" in refused(arguments(folder, tiny_t5, tmp_path / "out"), 3, capsys)

    def test_other_shapes_than_configured_are_refused(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = official(r=4, max_length=11)
        message = refused(arguments(folder, tiny_t5, tmp_path / "out"), 4, capsys)
        assert "are not those of adapter_config.json beside it" in message
        assert f"{A_NAME} (11, 4) (12, 3) {B_NAME} (4, 16) (3, 16) Take both files from one checkpoint" in message

    def test_a_backbone_of_another_width_is_refused(
        self,
        official: Official,
        make_t5: Callable[..., T5ForConditionalGeneration],
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        make_t5(d_model=8).save_pretrained(tmp_path / "narrow")
        tokenizer.save_pretrained(tmp_path / "narrow")
        capsys.readouterr()
        assert refused(arguments(official(), tmp_path / "narrow", tmp_path / "out"), 4, capsys) == (
            f"error: The adapter's vectors have 16 numbers, but those of the backbone {tmp_path / 'narrow'} have 8. "
            "Give the backbone that it was trained on: --backbone t5-base"
        )

    def test_a_backbone_of_another_family_is_refused(
        self,
        official: Official,
        tiny_t5: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(Backbone, "family", "decoder")
        message = refused(arguments(official(), tiny_t5, tmp_path / "out"), 4, capsys)
        assert f"the backbone {tiny_t5} is of the family decoder. Give the backbone that it was trained on" in message

    @pytest.mark.parametrize(
        ("config", "fault"),
        [
            ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING', not 'PROMPT_TUNING_LORA'"),
            ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM', not 'SEQ_2_SEQ_LM'"),
            ({"lora_alpha": 16}, "lora_alpha is 16, not 8"),
            ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, not 1"),
            ({"r": 0}, "r is 0, not a number of 1 or more"),
            ({"max_length": "12"}, "max_length is '12', not a number of 1 or more"),
            ({"token_dim": None}, "token_dim is None, not a number of 1 or more"),
        ],
    )
    def test_another_configuration_is_refused(
        self,
        official: Official,
        tiny_t5: Path,
        tmp_path: Path,
        config: dict[str, object],
        fault: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = official(**config)
        assert refused(arguments(folder, tiny_t5, tmp_path / "out"), 3, capsys) == (
            f"error: {folder / 'adapter_config.json'} is not that of a published DePT adapter: {fault}. Give one of an "
            "encoder-decoder, as the official code writes it"
        )

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.bin"])
    def test_a_missing_file_is_named(
        self, official: Official, tiny_t5: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = official()
        (folder / name).unlink()
        message = refused(arguments(folder, tiny_t5, tmp_path / "out"), 3, capsys)
        assert message == f"error: {folder} has no {name}. Give a folder of the official repository's checkpoints/"

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("adapter_config.json", b"{", "is not JSON: "),
            ("adapter_config.json", b"[]", "is no JSON object. Download it again"),
            ("adapter_model.bin", b"", "cannot be read: "),
            ("adapter_model.bin", b"garbage", "is no pickle of tensors alone, and nothing else is read"),
            ("adapter_model.bin", b"PK\x03\x04", "cannot be read: "),
        ],
        ids=["torn", "list", "empty", "garbage", "no archive"],
    )
    def test_a_damaged_file_is_refused(
        self,
        official: Official,
        tiny_t5: Path,
        tmp_path: Path,
        name: str,
        content: bytes,
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = official()
        (folder / name).write_bytes(content)
        assert f"{folder / name} {message}" in refused(arguments(folder, tiny_t5, tmp_path / "out"), 5, capsys)

    def test_code_in_the_pickle_is_not_run(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = official()
        torch.save({P_NAME: Leaves(tmp_path / "trace")}, folder / "adapter_model.bin")
        message = refused(arguments(folder, tiny_t5, tmp_path / "out"), 5, capsys)
        assert message == (
            f"error: {folder / 'adapter_model.bin'} is no pickle of tensors alone, and nothing else is read. "
            "Download it again"
        )
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize("content", [[torch.zeros(2)], {"prompt_embeddings": 3}], ids=["list", "numbers"])
    def test_a_file_of_something_else_is_refused(
        self, official: Official, tiny_t5: Path, tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = official()
        torch.save(content, folder / "adapter_model.bin")
        message = refused(arguments(folder, tiny_t5, tmp_path / "out"), 5, capsys)
        assert message.endswith("adapter_model.bin holds something else than named tensors. Download it again")

    def test_a_torn_pickle_is_refused(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = official()
        path = folder / "adapter_model.bin"
        path.write_bytes(path.read_bytes()[:500])
        assert f"{path} cannot be read: " in refused(arguments(folder, tiny_t5, tmp_path / "out"), 5, capsys)

    def test_a_task_with_images_is_refused(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(arguments(official(), tiny_t5, tmp_path / "out", "--task", "vqa"), 2, capsys)
        assert message == (
            "error: --task vqa has images, but the published adapters are of text tasks. Name one of those"
        )

    def test_a_folder_that_holds_something_is_left_alone(
        self, official: Official, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("")
        message = refused(arguments(official(), tiny_t5, tmp_path / "out"), 2, capsys)
        assert message == f"error: --output {tmp_path / 'out'} is not empty. Give a new folder"


@pytest.mark.shared
class TestPublishedFiles:
    @pytest.fixture
    def wide_t5(
        self,
        make_t5: Callable[..., T5ForConditionalGeneration],
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
    ) -> Path:
        """T5-base's width in one layer of few and small heads."""
        make_t5(
            d_model=768, d_kv=8, num_heads=2, num_layers=1, num_decoder_layers=1, initializer_factor=1.0
        ).save_pretrained(tmp_path / "wide")
        tokenizer.save_pretrained(tmp_path / "wide")
        return tmp_path / "wide"

    @pytest.mark.parametrize(("name", "m", "r"), [("cola", 80, 15), ("sst2", 60, 30)])
    @pytest.mark.parametrize("trimmed", [False, True], ids=["padded", "trimmed"])
    def test_the_published_adapters_compute_what_they_do_in_the_official_code(
        self,
        shared: Path,
        wide_t5: Path,
        tmp_path: Path,
        make_batch: Callable[..., Batch],
        name: str,
        m: int,
        r: int,
        trimmed: bool,
    ) -> None:
        folder = shared / "checkpoints" / "dept-official" / name
        main(arguments(folder, wide_t5, tmp_path / "run", "--task", name))
        loaded = load_run(tmp_path / "run", data=tmp_path)
        assert loaded.adapter.tensors["prompt.prompt"].shape == (m, 768)
        assert loaded.adapter.tensors["prompt.a"].shape == (256, r)
        batch = make_batch((40, 13, 3), images=0, task=name)
        padded = make_batch((40, 13, 3), images=0, task=name, pad=216)
        t5 = load_backbone(BackboneSettings(name=str(wide_t5))).model
        expected = official_logits(t5, saved(folder), padded)
        found = our_logits(loaded.model, batch if trimmed else padded)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # float32, logits up to 18

    def test_the_published_prompt_without_a_and_b_is_refused(
        self, shared: Path, wide_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = shared / "checkpoints" / "dept-official" / "nq"
        message = refused(arguments(folder, wide_t5, tmp_path / "out", "--task", "nq"), 3, capsys)
        assert "lora_embedding_A (512 x 24) and prompt_encoder.lora_embedding_B (24 x 768) missing" in message
