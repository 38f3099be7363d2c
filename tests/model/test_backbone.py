"""Text backbones by name, and what tells one from another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dept_vl.model.backbone import EMBEDDED, Backbone, load_backbone, tokenizer_digest, weight_digest
from dept_vl.settings import BackboneSettings
from feature_extraction.errors import DamagedError, InputDataError

EMBEDDED_WEIGHTS = "967dc6947c2142188d91fce24d4264a955ee8d1279b9bfd155b9b1f12a4d04d1"
EMBEDDED_TOKENIZER = "0df37c20b05ea157efcc2f544fb422e41e6634b0c473a3d87844d4475e837032"


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone(BackboneSettings(name="t5-mini"))


def test_the_embedded_backbone_loads_by_name_and_is_the_published_one(embedded: Backbone) -> None:
    assert embedded.weight_digest == EMBEDDED_WEIGHTS
    assert embedded.tokenizer_digest == EMBEDDED_TOKENIZER
    assert sum(value.numel() for value in embedded.model.parameters()) == 13_115_904
    assert embedded.model.config.d_model == 256
    assert len(embedded.tokenizer) == 8192


def test_the_embedded_backbone_answers(embedded: Backbone) -> None:
    inputs = embedded.tokenizer("What color is the <extra_id_0> in the sky?", return_tensors="pt")
    ids = embedded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert embedded.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_weights_are_converted_but_named_by_their_published_bytes(embedded: Backbone) -> None:
    assert embedded.model.dtype == torch.float32
    half = load_backbone(BackboneSettings(name="t5-mini"), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert half.weight_digest == embedded.weight_digest


def test_its_own_dropout_stays_unless_the_settings_change_it(embedded: Backbone) -> None:
    assert embedded.model.config.dropout_rate == 0.05
    assert embedded.model.encoder.dropout.p == 0.05
    without = load_backbone(BackboneSettings(name="t5-mini", dropout=0.0))
    assert without.model.encoder.dropout.p == 0
    assert without.model.decoder.block[0].layer[0].dropout.p == 0
    assert without.weight_digest == embedded.weight_digest


def test_a_local_folder_loads_like_a_name(backbone: Backbone, backbone_folder: Path) -> None:
    loaded = load_backbone(BackboneSettings(name=str(backbone_folder)))
    assert loaded.name == str(backbone_folder)
    assert loaded.weight_digest == backbone.weight_digest
    assert loaded.tokenizer_digest == backbone.tokenizer_digest
    weights = dict(backbone.model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.named_parameters())


def test_one_changed_number_changes_the_digest(backbone: Backbone) -> None:
    with torch.no_grad():
        backbone.model.shared.weight[3, 5] += 1e-3
    assert weight_digest(backbone.model) != backbone.weight_digest


def test_another_precision_changes_the_digest(backbone: Backbone) -> None:
    assert weight_digest(backbone.model.bfloat16()) != backbone.weight_digest


def test_another_vocabulary_changes_the_tokenizer_digest(backbone: Backbone, backbone_folder: Path) -> None:
    path = backbone_folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    path.write_text(json.dumps(content))
    assert load_backbone(BackboneSettings(name=str(backbone_folder))).tokenizer_digest != backbone.tokenizer_digest


def test_another_normalisation_changes_the_tokenizer_digest(embedded: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "lower"
    shutil.copytree(EMBEDDED["t5-mini"], folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    other = load_backbone(BackboneSettings(name=str(folder)))
    assert other.tokenizer.get_vocab() == embedded.tokenizer.get_vocab()
    assert other.tokenizer_digest != tokenizer_digest(embedded.tokenizer)


def test_an_unknown_name_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputDataError) as raised:
        load_backbone(BackboneSettings(name="nobody/no-such-t5"))
    message = str(raised.value)
    assert message.startswith("No text backbone 'nobody/no-such-t5': ")
    assert message.endswith("Give t5-mini (embedded), a local folder, or a Hugging Face id such as google-t5/t5-base")
    with pytest.raises(InputDataError, match="No text backbone"):
        load_backbone(BackboneSettings(name=str(tmp_path)))


def test_a_model_of_no_language_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(InputDataError) as raised:
        load_backbone(BackboneSettings(name=str(tmp_path)))
    assert str(raised.value) == (
        f"Text backbone {str(tmp_path)!r} is of type 'resnet', which is no language model for text. Choose one with "
        "--backbone, such as t5-mini, google/flan-t5-base, facebook/bart-base, gpt2 or roberta-base"
    )


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_missing_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("encoder.block.1.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def with_other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_ff": 64}))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (without_weights, "Error no file named model.safetensors"),
        (with_cut_weights, "incomplete metadata, file not fully covered"),
        (with_missing_tensors, "8 tensors are missing, first encoder.block.1.layer.0.SelfAttention.k.weight"),
        (with_other_sizes, "ignore_mismatched_sizes"),
        (without_tokenizer, "104 tokens but 29 embeddings"),
    ],
)
def test_a_backbone_that_is_not_whole_is_refused(backbone_folder: Path, damage: object, fault: str) -> None:
    damage(backbone_folder)  # type: ignore[operator]
    with pytest.raises(DamagedError) as raised:
        load_backbone(BackboneSettings(name=str(backbone_folder)))
    message = str(raised.value)
    assert message.startswith(f"Text backbone {str(backbone_folder)!r} is not whole: ")
    assert fault in message
    assert message.endswith(". Copy or download it again, with config.json, model.safetensors and tokenizer.json")
