"""Parity with the library and with PEFT, and invariance to padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import T5ForConditionalGeneration

from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.types import Batch

MakeT5 = Callable[..., T5ForConditionalGeneration]
MakeBatch = Callable[..., Batch]


def visual_embedding(images: int = 1) -> VisualEmbedding:
    torch.manual_seed(1)
    return VisualEmbedding(feature_width=6, hidden_size=16, images=images, tokens_per_image=4, epsilon=1e-6)


def decomposed_prompt(length: int = 3, rows: int = 8) -> DecomposedPrompt:
    generator = torch.Generator().manual_seed(2)
    prompt = DecomposedPrompt(
        prompt=torch.randn(length, 16, generator=generator),
        a=torch.randn(rows, 2, generator=generator),
        b=torch.randn(2, 16, generator=generator),
        scale=1.0,
    )
    prompt.trained_length.fill_(rows)
    return prompt


def real_states(encoder: MultimodalEncoder, batch: Batch) -> list[Tensor]:
    """The encoder states of each example at its real positions, in the encoder's precision."""
    dtype = next(encoder.parameters()).dtype
    batch = replace(batch, visual_tokens=batch.visual_tokens.to(dtype), boxes=batch.boxes.to(dtype))
    with torch.no_grad():
        states, mask = encoder(batch)
    return [state[where] for state, where in zip(states, mask, strict=True)]


def test_without_images_and_prompt_it_equals_the_library_encoder(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    t5, batch = make_t5(), make_batch((5, 3), pad=2)
    encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=None, visual_embedding=None)
    with torch.no_grad():
        library = t5.encoder(input_ids=batch.text_ids, attention_mask=batch.text_mask.long()).last_hidden_state
    for ours, theirs, mask in zip(real_states(encoder, batch), library, batch.text_mask, strict=True):
        torch.testing.assert_close(ours, theirs[mask], rtol=0, atol=1e-6)


def test_with_the_prompt_only_it_equals_peft_prompt_tuning(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    t5, batch = make_t5(), make_batch((5, 3))
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1)
    peft_model = get_peft_model(make_t5(), config).eval()
    weights = peft_model.prompt_encoder["default"].embedding.weight.detach().clone()
    encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=SoftPrompt(weights), visual_embedding=None)
    with torch.no_grad():
        labels = batch.target_ids
        theirs = peft_model(
            input_ids=batch.text_ids, attention_mask=batch.text_mask.long(), labels=labels
        ).encoder_last_hidden_state
    for ours, state, mask in zip(real_states(encoder, batch), theirs, batch.text_mask, strict=True):
        real = torch.cat([torch.ones(3, dtype=torch.bool), mask])
        torch.testing.assert_close(ours, state[real], rtol=0, atol=1e-6)


@pytest.mark.parametrize("vl_t5_positions", [False, True])
@pytest.mark.parametrize("pad_left", [False, True])
def test_padding_on_either_side_changes_nothing(
    make_t5: MakeT5, make_batch: MakeBatch, vl_t5_positions: bool, pad_left: bool
) -> None:
    encoder = (
        MultimodalEncoder(
            t5_encoder=make_t5().encoder,
            prompt=decomposed_prompt(),
            visual_embedding=visual_embedding(),
            vl_t5_positions=vl_t5_positions,
        )
        .double()
        .eval()
    )
    plain = real_states(encoder, make_batch((5, 3)))
    padded = real_states(encoder, make_batch((5, 3), pad=4, pad_left=pad_left))
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vl_t5_positions", [False, True])
def test_an_example_does_not_depend_on_its_batch(make_t5: MakeT5, make_batch: MakeBatch, vl_t5_positions: bool) -> None:
    encoder = (
        MultimodalEncoder(
            t5_encoder=make_t5().encoder,
            prompt=decomposed_prompt(),
            visual_embedding=visual_embedding(),
            vl_t5_positions=vl_t5_positions,
        )
        .double()
        .eval()
    )
    batch = make_batch((5, 3))
    alone = replace(
        batch, example_ids=batch.example_ids[1:], **{name: rows[1:] for name, rows in batch.tensors().items()}
    )
    torch.testing.assert_close(real_states(encoder, alone)[0], real_states(encoder, batch)[1], rtol=0, atol=1e-12)


def test_the_vl_t5_rule_has_no_bias_wherever_a_visual_token_takes_part(make_t5: MakeT5) -> None:
    encoder = MultimodalEncoder(
        t5_encoder=make_t5().encoder, prompt=None, visual_embedding=visual_embedding(), vl_t5_positions=True
    )
    bias = encoder._additive_bias(torch.ones(1, 7, dtype=torch.bool), visual_length=4)
    library = encoder.t5_encoder.block[0].layer[0].SelfAttention.compute_bias(3, 3)
    assert torch.equal(bias[..., :3, :3], library)
    assert bias[..., 3:, :].eq(0).all()
    assert bias[..., :, 3:].eq(0).all()


def test_the_joint_rule_numbers_visual_tokens_after_the_last_real_text_token(make_t5: MakeT5) -> None:
    encoder = MultimodalEncoder(t5_encoder=make_t5().encoder, prompt=None, visual_embedding=visual_embedding())
    mask = torch.tensor([[True, True, False, True, True, True, True]])  # two text tokens, padding, four visual tokens
    bias = encoder._additive_bias(mask, visual_length=4)
    library = encoder.t5_encoder.block[0].layer[0].SelfAttention.compute_bias(6, 6)
    real = mask[0].nonzero().flatten()
    assert torch.equal(bias[0][:, real][:, :, real], library[0])
    assert bias[..., 2].eq(torch.finfo(bias.dtype).min).all()


def test_masked_visual_tokens_change_nothing(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    encoder = MultimodalEncoder(t5_encoder=make_t5().encoder, prompt=None, visual_embedding=visual_embedding()).eval()
    batch = make_batch((4,))
    mask = torch.tensor([[[True, True, True, False]]])
    junk = batch.visual_tokens.clone()
    junk[..., 3, :] = 100.0
    with_junk = replace(batch, visual_mask=mask, visual_tokens=junk)
    torch.testing.assert_close(
        real_states(encoder, replace(batch, visual_mask=mask))[0], real_states(encoder, with_junk)[0], rtol=0, atol=0
    )


def test_examples_may_have_several_images(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    encoder = MultimodalEncoder(
        t5_encoder=make_t5().encoder, prompt=decomposed_prompt(), visual_embedding=visual_embedding(images=2)
    ).eval()
    states, mask = encoder(make_batch((5, 3), images=2))
    assert states.shape == (2, 3 + 5 + 2 * 4, 16)
    assert mask.sum(dim=1).tolist() == [3 + 5 + 8, 3 + 3 + 8]
