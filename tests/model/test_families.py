"""Every family of language models with every kind of offset, trained and asked through the same calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest
import torch
from torch.nn import functional
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from dept_vl.model.backbone import Backbone, family_of, tokenizer_digest, weight_digest
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.heads import GenerationHead
from dept_vl.model.prompted_text import pack
from dept_vl.settings import MethodSettings, Settings, TaskSettings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
VOCABULARY = 29
METHODS = ("prompt", "dept", "adept", "dept_adept")
GENERATING = ("t5", "bart", "gpt2", "llama", "qwen2")
ENCODERS = ("bert", "roberta")
LABELS = ("yes", "no", "two three")


def bart() -> PreTrainedModel:
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    wide = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=16, max_position_embeddings=64, scale_embedding=True, **sizes, **wide, **IDS
    )
    config.decoder_start_token_id = 1
    return BartForConditionalGeneration(config)


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, **IDS))


def rotary(config: type, model: type) -> PreTrainedModel:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    whole: PreTrainedModel = model(
        config(vocab_size=VOCABULARY, hidden_size=16, max_position_embeddings=64, **sizes, **IDS)
    )
    return whole


def encoder(config: type, model: type, positions: int) -> PreTrainedModel:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    whole: PreTrainedModel = model(
        config(vocab_size=VOCABULARY, hidden_size=16, max_position_embeddings=positions, **sizes, **IDS),
        add_pooling_layer=False,
    )
    return whole


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bart": bart,
    "gpt2": gpt2,
    "llama": lambda: rotary(LlamaConfig, LlamaForCausalLM),
    "qwen2": lambda: rotary(Qwen2Config, Qwen2ForCausalLM),
    "bert": lambda: encoder(BertConfig, BertModel, 64),
    "roberta": lambda: encoder(RobertaConfig, RobertaModel, 65),
}


@pytest.fixture
def make_backbone(
    make_t5: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Backbone]:
    def make(kind: str) -> Backbone:
        torch.manual_seed(3)
        model = make_t5() if kind == "t5" else MAKERS[kind]().eval()
        with torch.no_grad():  # random models of the libraries' scale attend to nothing in particular
            for name, parameter in model.named_parameters():
                if kind != "t5" and parameter.ndim > 1 and "embed" not in name:
                    parameter.mul_(8)
        start = {"decoder_start_token_id": 0 if kind == "t5" else 1} if model.config.is_encoder_decoder else {}
        model.generation_config = GenerationConfig(**IDS, **start)  # as load_backbone leaves it
        return Backbone(kind, model, tokenizer, weight_digest(model), tokenizer_digest(tokenizer))

    return make


def build(backbone: Backbone, method: str, *, rank: int = 2, **task: Any) -> BuiltModel:
    """A model whose offsets are not zero, as after training on texts of eight tokens."""
    head = {"head": "classification"} if backbone.family == "encoder" else {}
    settings = Settings(
        method=MethodSettings(name=method, budget_length=16, prompt_length=3, rank=rank),
        tasks={
            "text": TaskSettings(**{"name": "text", "images_per_example": 0, "max_text_length": 12, **head, **task})
        },
    )
    built = build_model(settings, backbone, visual_tokens=0, feature_width=0, seed=0, answers={"text": LABELS})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in built.groups:
            for name, parameter in group.parameters.items():
                if group.name == "low_rank":
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
                if name.endswith("b1"):
                    parameter.abs_()  # so that some of ADePT's units are alive
    for prompt in built.model.encoder.prompts().values():
        if "trained_length" in dict(prompt.named_buffers()):
            prompt.get_buffer("trained_length").fill_(8)
    built.model.eval()
    return built


def text_batch(make_batch: Callable[..., Batch], **options: Any) -> Batch:
    batch = make_batch(**{"lengths": (5, 3, 7), "images": 0, "task": "text", "answers": len(LABELS), **options})
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    return replace(batch, target_mask=mask, target_ids=batch.target_ids.masked_fill(~mask, 0))


def only(batch: Batch, row: int) -> Batch:
    """One row without padding."""
    one = {name: tensor[row : row + 1] for name, tensor in batch.tensors().items()}
    length = int(one["text_mask"].sum())
    one["text_ids"], one["text_mask"] = one["text_ids"][:, :length], one["text_mask"][:, :length]
    return Batch(task="text", example_ids=batch.example_ids[row : row + 1], **one)


@pytest.mark.parametrize(("kind", "method"), list(product((*GENERATING, *ENCODERS), METHODS)))
def test_padding_on_either_side_changes_nothing(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    model = build(make_backbone(kind), method).model
    plain, right, left = (
        text_batch(make_batch, **options) for options in ({}, {"pad": 3}, {"pad": 3, "pad_left": True})
    )
    losses = [model.loss(batch).loss for batch in (plain, right, left)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-5, atol=1e-6)
    answers = [model.answer(batch) for batch in (plain, right, left)]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(("kind", "method"), list(product(GENERATING, METHODS)))
def test_padding_of_targets_changes_no_loss(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    model = build(make_backbone(kind), method).model
    plain = text_batch(make_batch)
    padded = replace(
        plain,
        target_ids=functional.pad(plain.target_ids, (0, 5)),
        target_mask=functional.pad(plain.target_mask, (0, 5)),
    )
    torch.testing.assert_close(model.loss(padded).loss, model.loss(plain).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "method"), list(product((*GENERATING, *ENCODERS), METHODS)))
def test_each_row_is_answered_as_if_it_were_alone(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    model = build(make_backbone(kind), method).model
    batch = text_batch(make_batch)
    together = model.answer(batch)
    for row in range(len(batch.example_ids)):
        assert model.answer(only(batch, row)) == together[row : row + 1]


@pytest.mark.parametrize("kind", [*GENERATING, *ENCODERS])
@pytest.mark.parametrize("method", METHODS[1:])
def test_offsets_that_are_zero_are_no_offsets(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    built = build(make_backbone(kind), method)
    batch, reference = text_batch(make_batch), build(make_backbone(kind), "prompt").model
    with_offsets = built.model.loss(batch).loss
    prompt = built.model.encoder.prompts()["prompt"]
    with torch.no_grad():
        for name, parameter in prompt.groups()["low_rank"].items():
            if name.rpartition(".")[2] in ("b", "w2", "b2"):
                parameter.zero_()
        reference.encoder.prompts()["prompt"].prompt = prompt.prompt
    if kind in ENCODERS:  # the head's own weights are drawn after the prompt's
        reference.heads.load_state_dict(built.model.heads.state_dict())
        for family in (head.family for head in reference.heads.values()):
            family._prompt_length = 3
    torch.testing.assert_close(built.model.loss(batch).loss, reference.loss(batch).loss, rtol=1e-6, atol=1e-6)
    assert (with_offsets - reference.loss(batch).loss).abs() > 1e-4


@pytest.mark.parametrize(("kind", "method"), list(product(GENERATING, METHODS)))
def test_generation_sees_what_teacher_forcing_sees(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    """Each token that greedy search generates with its cache is the likeliest after those before it, without one."""
    model = build(make_backbone(kind), method).model
    batch, head = text_batch(make_batch), cast(GenerationHead, model.heads["text"])
    endless = list(range(2, VOCABULARY))
    ids = head.family.generate(
        model.backbone, *model.encoder(batch), max_length=6, num_beams=1, allowed=lambda row, before: endless
    )
    forced = replace(batch, target_ids=ids, target_mask=torch.ones_like(ids, dtype=torch.bool))
    logits = head.family.target_logits(model.backbone, *model.encoder(forced), forced)
    assert ids.shape == (3, 6)
    assert (logits[..., 2:].argmax(dim=-1) + 2).tolist() == ids.tolist()


@pytest.mark.parametrize(("kind", "method"), list(product(GENERATING, ("dept", "dept_adept"))))
def test_beams_of_one_row_are_not_those_of_another(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    model = build(make_backbone(kind), method, num_beams=3).model
    batch = text_batch(make_batch)
    head = cast(GenerationHead, model.heads["text"])
    together = head.generate(model.backbone, *model.encoder(batch))
    for row in range(3):
        alone = head.generate(model.backbone, *model.encoder(only(batch, row)))[0].tolist()
        assert together[row].tolist()[: len(alone)] == alone
        assert set(together[row].tolist()[len(alone) :]) <= {0, 1}


@pytest.mark.parametrize("kind", GENERATING)
def test_constrained_and_first_step_answers_are_labels(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str
) -> None:
    batch = text_batch(make_batch)
    for task in ({"constrained": True}, {"head": "first_step"}, {"head": "classification"}):
        assert set(build(make_backbone(kind), "dept", **task).model.answer(batch)) <= set(LABELS)


@pytest.mark.parametrize(("kind", "method"), list(product((*GENERATING, *ENCODERS), METHODS)))
def test_only_what_was_added_gets_gradients(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    built = build(make_backbone(kind), method)
    before = weight_digest(built.model.backbone)
    built.model.loss(text_batch(make_batch)).loss.backward()
    trained = {id(value): name for group in built.groups for name, value in group.parameters.items()}
    moving = {id(value) for value in built.model.parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    assert moving == trained.keys()
    assert weight_digest(built.model.backbone) == before


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama", "bert"])
@pytest.mark.parametrize("method", ["adept", "dept_adept"])
def test_a_folded_offset_gives_the_same_and_leaves_the_shared_table_alone(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str, method: str
) -> None:
    backbone = make_backbone(kind)
    model, batch = build(backbone, method).model, text_batch(make_batch)
    loss, answers = model.loss(batch).loss, model.answer(batch)
    model.encoder.fold()
    assert model.encoder.prompts()["prompt"].token_offset is None
    torch.testing.assert_close(model.loss(batch).loss, loss, rtol=1e-6, atol=1e-6)
    assert model.answer(batch) == answers
    assert weight_digest(backbone.model) == backbone.weight_digest


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokens_of_the_answer_get_the_offsets_of_their_positions(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str
) -> None:
    """Rows of A behind the text change what follows the answer's first token, and nothing before it."""
    model = build(make_backbone(kind), "dept").model
    batch, head = text_batch(make_batch, lengths=(5, 5, 5)), cast(GenerationHead, model.heads["text"])
    batch = replace(batch, target_mask=torch.ones_like(batch.target_mask))
    before = head.family.target_logits(model.backbone, *model.encoder(batch), batch)
    with torch.no_grad():
        model.encoder.prompts()["prompt"].groups()["low_rank"]["a"][5] += 1
    after = head.family.target_logits(model.backbone, *model.encoder(batch), batch)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert ((after - before)[:, 1:].abs().amax(dim=(0, 2)) > 1e-3).all()


def test_families_are_told_by_the_configuration() -> None:
    assert {kind: family_of(make().config) for kind, make in MAKERS.items()} == {
        "bart": "encoder_decoder",
        "gpt2": "decoder",
        "llama": "decoder",
        "qwen2": "decoder",
        "bert": "encoder",
        "roberta": "encoder",
    }
    assert family_of(BertConfig(is_decoder=True)) == "decoder"


def test_an_encoder_alone_is_refused_where_text_is_generated(make_backbone: Callable[[str], Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        build(make_backbone("bert"), "dept", head="generation")
    assert str(raised.value) == (
        "Task text has task.head=generation, but 'bert' (bert) is an encoder alone and generates nothing. "
        "Set task.head=classification, or choose a backbone with a decoder"
    )


def test_images_without_a_t5_are_refused(make_backbone: Callable[[str], Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        build(make_backbone("gpt2"), "dept", images_per_example=1)
    assert str(raised.value) == (
        "Task text has images, but the text backbone 'gpt2' is of type 'gpt2': visual tokens go with a T5 (v1.0, v1.1 "
        "or Flan). Choose one with --backbone, such as t5-mini"
    )


@pytest.mark.parametrize(("kind", "available", "target"), [("bert", 64, 0), ("roberta", 64, 0), ("gpt2", 64, 10)])
def test_more_positions_than_the_model_has_are_refused(
    make_backbone: Callable[[str], Backbone], kind: str, available: int, target: int
) -> None:
    fits = available - 3 - target
    build(make_backbone(kind), "dept", rank=1, max_text_length=fits, max_target_length=max(target, 2))
    with pytest.raises(UsageError) as raised:
        build(make_backbone(kind), "dept", rank=1, max_text_length=fits + 1, max_target_length=max(target, 2))
    assert str(raised.value) == (
        f"Task text needs {available + 1} positions (prompt, task.max_text_length and, of a decoder-only model, "
        f"task.max_target_length), but {kind!r} has {available}. Lower task.max_text_length by 1"
    )


def test_packing_keeps_the_order_of_what_is_real() -> None:
    values = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    first, first_mask = pack(values, mask, last=False)
    last, last_mask = pack(values, mask, last=True)
    assert first[first_mask].flatten().tolist() == last[last_mask].flatten().tolist() == [0, 2, 3, 5]
    assert first_mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert last_mask.tolist() == [[False, True, True, True], [False, False, False, True]]


@pytest.mark.parametrize("kind", [*GENERATING, *ENCODERS])
def test_bf16_weights_under_fp32_prompts_train_and_answer(
    make_backbone: Callable[[str], Backbone], make_batch: Callable[..., Batch], kind: str
) -> None:
    backbone = make_backbone(kind)
    batch, whole = text_batch(make_batch), build(backbone, "dept_adept").model
    expected = whole.loss(batch).loss
    half = build(backbone._replace(model=backbone.model.bfloat16()), "dept_adept")
    with torch.autocast("cpu", torch.bfloat16):
        loss = half.model.loss(batch).loss
        loss.backward()
        assert len(half.model.answer(batch)) == 3
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.1, check_dtype=False)
    assert all(value.grad is not None for group in half.groups for value in group.parameters.values())
