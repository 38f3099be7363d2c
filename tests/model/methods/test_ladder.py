"""Ladder side-tuning: a fresh one changes nothing, and no gradient or activation of a frozen block is needed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from dept_vl.model.adapter import restore_tensors, trained_tensors
from dept_vl.model.backbone import Backbone
from dept_vl.model.heads import GenerationHead
from dept_vl.model.methods.insertion import Insertion
from dept_vl.model.methods.ladder import insert_ladder
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import ParameterGroup, select_trainable
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.settings import MethodSettings, OptimizerSettings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

MakeT5 = Callable[..., T5ForConditionalGeneration]
MakeBatch = Callable[..., Batch]
LST = MethodSettings(name="lst", width=4)
PUBLISHED = {  # keys of T5Config: v1.0, and v1.1 with Flan
    "v1.0": {},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


class Built(NamedTuple):
    model: PromptedModel
    insertion: Insertion | None
    groups: list[ParameterGroup]

    @property
    def ladder(self) -> Any:
        return self.model.backbone.ladder


class Build:
    """The tiny T5 with a ladder, or without one, and with images or without."""

    def __init__(self, make_t5: MakeT5, tokenizer: PreTrainedTokenizerFast) -> None:
        self.make_t5, self.tokenizer = make_t5, tokenizer

    def __call__(
        self,
        method: MethodSettings | None = LST,
        *,
        images: int = 1,
        trained: bool = False,
        beams: int = 1,
        dtype: torch.dtype = torch.float32,
        **changes: object,
    ) -> Built:
        t5: Any = self.make_t5(**changes)
        t5 = t5.to(dtype)
        torch.manual_seed(3)
        insertion = None
        if method is not None:
            insertion = insert_ladder(Backbone("tiny", t5, self.tokenizer, "", ""), method, allowed=None)
        visual = None
        if images:
            torch.manual_seed(1)
            visual = VisualEmbedding(
                feature_width=6, hidden_size=t5.config.d_model, images=images, tokens_per_image=4, epsilon=1e-6
            )
        encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=None, visual_embedding=visual)
        head = GenerationHead(tokenizer=self.tokenizer, max_length=6, num_beams=beams)
        model = PromptedModel(backbone=t5, encoder=encoder, heads={"vqa": head}).eval()
        built = Built(model, insertion, select_trainable(model, [insertion] if insertion else [], OptimizerSettings()))
        if trained:
            perturb(built)
        return built


@pytest.fixture
def build(make_t5: MakeT5, tokenizer: PreTrainedTokenizerFast) -> Build:
    return Build(make_t5, tokenizer)


def perturb(built: Built) -> None:
    """As after training: no parameter at its first value."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in built.ladder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        up = built.ladder.decoder.up
        up.weight.copy_(torch.randn(up.weight.shape, generator=generator) * 2)


def states(built: Built, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        encoded, mask = built.model.encoder(batch)
    return encoded, mask


def logits(built: Built, batch: Batch) -> Tensor:
    with torch.no_grad():
        return built.model.heads["vqa"].family.target_logits(built.model.backbone, *states(built, batch), batch)


def generated(built: Built, batch: Batch, beams: int) -> Tensor:
    head = built.model.heads["vqa"]
    head.num_beams = beams
    return head.generate(built.model.backbone, *states(built, batch))


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("images", [0, 1])
def test_a_fresh_ladder_changes_nothing(build: Build, make_batch: MakeBatch, images: int, kind: str) -> None:
    batch = make_batch((5, 3), images=max(images, 1))
    frozen, fresh = build(None, images=images, **PUBLISHED[kind]), build(images=images, **PUBLISHED[kind])
    assert torch.equal(logits(fresh, batch), logits(frozen, batch))
    assert fresh.model(batch).loss.item() == frozen.model(batch).loss.item()
    for beams in (1, 3):
        assert torch.equal(generated(fresh, batch, beams), generated(frozen, batch, beams))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_trained_ladder_changes_the_answers(build: Build, make_batch: MakeBatch, kind: str) -> None:
    batch = make_batch((5, 3))
    frozen, trained = build(None, **PUBLISHED[kind]), build(trained=True, **PUBLISHED[kind])
    assert (logits(trained, batch) - logits(frozen, batch)).abs().max() > 1
    assert not torch.equal(generated(trained, batch, 1), generated(frozen, batch, 1))


@pytest.mark.parametrize("images", [0, 2])
def test_gradients_reach_the_whole_ladder_and_the_visual_embedding_and_nothing_else(
    build: Build, make_batch: MakeBatch, images: int
) -> None:
    built = build(MethodSettings(name="lst", width=8), images=images, trained=True)
    built.model(make_batch((5, 3), images=max(images, 1))).loss.backward()
    reached = {name for name, value in built.model.named_parameters() if value.grad is not None and value.grad.any()}
    expected = {name for group in built.groups for name in group.parameters}
    assert {name.replace("encoder.visual_embedding", "visual_embedding", 1) for name in reached} == expected
    assert {group.name for group in built.groups} == ({"adapter", "visual"} if images else {"adapter"})
    assert all(name.startswith("backbone.ladder.") for name in expected if "visual" not in name)


def test_no_frozen_block_takes_part_in_the_graph(build: Build, make_batch: MakeBatch) -> None:
    built, seen = build(trained=True), []
    for stack in (built.model.backbone.encoder, built.model.backbone.decoder):
        for block in stack.block:
            block.register_forward_hook(lambda block, args, output: seen.append(output))
    built.model.train()(make_batch((5, 3)))
    tensors = [value for output in seen for value in output if value is not None]
    assert len(seen) == 4
    assert not any(value.requires_grad for value in tensors)


def saved_bytes(built: Built, batch: Batch) -> int:
    """What a training step keeps for its backward, each memory once, and without the parameters."""
    kept: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in built.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = built.model.train()(batch).loss
    assert loss.requires_grad  # all that was kept is alive until here
    return sum(kept.values())


def test_a_step_keeps_less_than_where_gradients_pass_the_frozen_blocks(build: Build, make_batch: MakeBatch) -> None:
    batch, sizes = make_batch((16, 16)), {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 4}
    ladder, through = build(**sizes), build(None, **sizes)
    assert saved_bytes(ladder, batch) < 0.6 * saved_bytes(through, batch)


def test_padding_of_text_and_images_changes_nothing(build: Build, make_batch: MakeBatch) -> None:
    built, batch = build(images=2, trained=True), make_batch((5, 3), images=2)
    absent = batch.visual_mask.clone()
    absent[:, 1] = False
    batch = replace(batch, visual_mask=absent)
    expected, answers = logits(built, batch), generated(built, batch, 3)
    for pad_left in (False, True):
        other = make_batch((5, 3), images=2, pad=4, pad_left=pad_left)
        noise = torch.where(absent[..., None], batch.visual_tokens, 100 * torch.randn(batch.visual_tokens.shape))
        other = replace(other, visual_mask=absent, visual_tokens=noise)
        torch.testing.assert_close(logits(built, other), expected, rtol=0, atol=1e-4)
        assert torch.equal(generated(built, other, 3), answers)


@pytest.mark.parametrize("images", [0, 1])
def test_greedy_search_gives_the_likeliest_token_at_each_step(build: Build, make_batch: MakeBatch, images: int) -> None:
    built, batch = build(images=images, trained=True), make_batch((5, 3))
    ids = generated(built, batch, 1)
    forced = logits(built, replace(batch, target_ids=ids, target_mask=ids != 0)).argmax(dim=-1)
    for row, likeliest in zip(ids.tolist(), forced.tolist(), strict=True):
        length = row.index(1) + 1 if 1 in row else len(row)
        assert row[:length] == likeliest[:length]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_of_beams_holds_the_side_network_too(build: Build, make_batch: MakeBatch, beams: int) -> None:
    built, batch = build(trained=True), make_batch((5, 3))
    backbone: Any = built.model.backbone
    (encoded, mask), runs = states(built, batch), []
    for cached in (True, False):
        runs.append(
            backbone.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=mask.long(),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=6,
                use_cache=cached,
                return_dict_in_generate=True,
                output_logits=True,
                output_scores=True,
            )
        )
    with_cache, without = runs
    assert torch.equal(with_cache.sequences, without.sequences)
    for one, other in zip(with_cache.logits, without.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    if beams > 1:
        # A beam's score is the mean log-probability of its tokens, as teacher forcing gives it.
        ids = with_cache.sequences[:, 1:]
        forced = logits(built, replace(batch, target_ids=ids, target_mask=ids != 0)).log_softmax(dim=-1)
        by_token = forced.gather(2, ids[..., None])[..., 0] * (ids != 0)
        expected = by_token.sum(dim=1) / (ids != 0).sum(dim=1)
        torch.testing.assert_close(with_cache.sequences_scores, expected, rtol=0, atol=1e-4)


def test_the_library_s_own_encoder_hands_the_ladder_on(build: Build, make_batch: MakeBatch) -> None:
    built, batch = build(images=0, trained=True), make_batch((5, 3))
    start = batch.target_ids.new_zeros(2, 1)
    with torch.no_grad():
        library = built.model.backbone(
            input_ids=batch.text_ids,
            attention_mask=batch.text_mask.long(),
            decoder_input_ids=torch.cat([start, batch.target_ids[:, :-1]], dim=1),
        )
    torch.testing.assert_close(library.logits, logits(built, batch), rtol=0, atol=1e-4)


def test_the_last_state_that_a_classification_head_reads_has_the_ladder_s_part(
    build: Build, make_batch: MakeBatch
) -> None:
    batch = make_batch((5, 3))
    read = []
    for built in (build(None), build(), build(trained=True)):
        encoded, mask = states(built, batch)
        output = built.model.backbone(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask.long(),
            decoder_input_ids=batch.target_ids[:, :1],
            output_hidden_states=True,
        )
        assert [state.shape for state in output.decoder_hidden_states] == [(2, 1, 16)] * 3
        read.append(output.decoder_hidden_states[-1])
    frozen, fresh, trained = read
    assert torch.equal(fresh, frozen)
    assert (trained - frozen).abs().max() > 0.1


def test_a_failed_forward_leaves_nothing_behind(build: Build, make_batch: MakeBatch) -> None:
    built, batch = build(trained=True), make_batch((5, 3))
    expected = built.model(batch).loss.item()
    backbone: Any = built.model.backbone

    def fail(block: nn.Module, args: tuple[Any, ...]) -> None:
        raise RuntimeError("out of memory")

    for stack in (backbone.encoder, backbone.decoder):
        handle = stack.block[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            built.model(batch)
        handle.remove()
        assert copy.deepcopy(built.model)(batch).loss.item() == expected
        assert built.model(make_batch((4, 2, 6))).loss.isfinite()
        assert built.model(batch).loss.item() == expected


def test_a_copy_has_a_ladder_of_its_own(build: Build, make_batch: MakeBatch) -> None:
    built, batch = build(trained=True), make_batch((5, 3))
    expected = built.model(batch).loss.item()
    other = copy.deepcopy(built.model)
    assert other(batch).loss.item() == expected
    with torch.no_grad():
        for parameter in other.backbone.ladder.parameters():
            parameter.zero_()
    assert built.model(batch).loss.item() == expected
    assert other(batch).loss.item() == pytest.approx(build(None).model(batch).loss.item())


def test_evaluation_without_gradients_equals_the_training_graph_s_numbers(build: Build, make_batch: MakeBatch) -> None:
    built, batch = build(trained=True), make_batch((5, 3))
    with torch.no_grad():
        alone = built.model(batch).loss
    assert not alone.requires_grad
    assert built.model(batch).loss.item() == pytest.approx(alone.item(), rel=1e-6)


def test_side_blocks_drop_as_the_backbone_does(build: Build, make_batch: MakeBatch) -> None:
    ladder = build(dropout_rate=0.25).ladder
    assert {module.p for module in ladder.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert {module.dropout for module in ladder.modules() if type(module).__name__ == "T5Attention"} == {0.25}
    built, batch = build(trained=True), make_batch((5, 3))
    built.model.train()
    assert built.model(batch).loss.item() != built.model(batch).loss.item()
    built.model.eval()
    assert built.model(batch).loss.item() == built.model(batch).loss.item()


def test_the_ladder_stays_in_float32_beside_a_bfloat16_backbone(build: Build, make_batch: MakeBatch) -> None:
    batch = make_batch((5, 3))
    frozen, built = (build(method, images=0, dtype=torch.bfloat16) for method in (None, LST))
    assert {value.dtype for value in built.ladder.parameters()} == {torch.float32}
    assert torch.equal(logits(built, batch), logits(frozen, batch))
    perturb(built)
    output = built.model.train()(batch)
    output.loss.backward()
    assert {value.grad.dtype for value in built.ladder.parameters()} == {torch.float32}
    built.model.eval()
    assert torch.equal(generated(built, batch, 3), generated(built, batch, 3))


def test_mixed_precision_trains_ladder_and_images(build: Build, make_batch: MakeBatch) -> None:
    built, batch = build(trained=True), make_batch((5, 3))
    exact = built.model(batch).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = built.model(batch).loss
        answers = generated(built, batch, 3)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.05)
    assert len(answers) == 2
    assert all(value.grad is not None for group in built.groups for value in group.parameters.values())


@pytest.mark.parametrize("width", [1, 2, 3, 5, 16])
def test_what_it_costs_is_what_it_adds(build: Build, width: int, make_batch: MakeBatch) -> None:
    frozen, built = build(None), build(replace(LST, width=width), trained=True)
    added = sum(value.numel() for value in built.model.parameters()) - sum(
        value.numel() for value in frozen.model.parameters()
    )
    assert built.insertion is not None
    assert sum(value.numel() for value in built.insertion.parameters) == added
    assert built.insertion.note == f"lst: width {width} in every layer: {added:,} parameters"
    assert built.model(make_batch((5, 3))).loss.isfinite()


def test_the_width_is_the_largest_that_the_budget_allows(make_t5: MakeT5, tokenizer: PreTrainedTokenizerFast) -> None:
    def insert(allowed: int, width: int | None = None) -> Insertion:
        backbone = Backbone("tiny", make_t5(), tokenizer, "", "")
        return insert_ladder(backbone, replace(LST, width=width), allowed=allowed)

    cost = sum(value.numel() for value in insert(10**6, 5).parameters)
    assert insert(cost).note == f"lst: width 5 in every layer: {cost:,} of {cost:,} parameters"
    assert insert(cost - 1).note.startswith("lst: width 4 in ")
    least = sum(value.numel() for value in insert(10**6, 1).parameters)
    message = (
        rf"^lst cannot meet the budget of 100 parameters: the nearest setting, width 1 in every layer, costs {least}\. "
        r"Raise method\.budget to that or choose another method$"
    )
    with pytest.raises(UsageError, match=message):
        insert(100)
    with pytest.raises(UsageError, match=r"^lst cannot meet .* lower the width, or choose another method$"):
        insert(100, 5)


def test_a_quarter_of_t5_base_is_the_published_share(tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    with torch.device("meta"):
        t5 = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=32_200, decoder_start_token_id=0))
    frozen = sum(value.numel() for value in t5.parameters())
    insertion = insert_ladder(Backbone("t5-base", t5, tokenizer, "", ""), replace(LST, width=192), allowed=None)
    trained = sum(value.numel() for value in insertion.parameters) + 1_580_544  # VL-T5's visual embedding
    assert 100 * trained / (frozen + trained) == pytest.approx(7.46, abs=0.005)


def test_it_comes_back_from_its_tensors(build: Build, make_batch: MakeBatch) -> None:
    built, again, batch = build(trained=True), build(), make_batch((5, 3))
    tensors = trained_tensors(built.model, built.groups)
    assert {"backbone.ladder.encoder.alpha", "backbone.ladder.decoder.up.weight"} < set(tensors)
    restore_tensors(again.model, again.groups, tensors, Path("adapter"))
    assert again.model(batch).loss.item() == built.model(batch).loss.item()
    assert torch.equal(generated(again, batch, 3), generated(built, batch, 3))


def test_other_backbones_are_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    small = {"vocab_size": 30, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1))
    bert = BertModel(BertConfig(**small, intermediate_size=8))
    for name, model in (("gpt2", gpt2), ("bert", bert)):
        message = (
            rf"^Method lst runs a side network beside a T5 \(v1\.0, v1\.1 or Flan\), but the backbone 'my {name}' is "
            rf"of type '{name}'\. Choose a T5 with --backbone, such as t5-mini, or another --method, such as lora$"
        )
        with pytest.raises(UsageError, match=message):
            insert_ladder(Backbone(f"my {name}", model, tokenizer, "", ""), LST, allowed=None)
