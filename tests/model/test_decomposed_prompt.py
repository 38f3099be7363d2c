"""DePT's update: where it applies, what it starts from, and the official arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from dept_vl.model.decomposed_prompt import DecomposedPrompt, official_a, paper_a
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.types import Batch

MakeT5 = Callable[..., T5ForConditionalGeneration]
MakeBatch = Callable[..., Batch]

ROWS, RANK, HIDDEN = 8, 2, 16


def make_prompt(*, length: int = 3, rows: int = ROWS, trained: int = ROWS, scale: float = 1.0) -> DecomposedPrompt:
    generator = torch.Generator().manual_seed(3)
    prompt = DecomposedPrompt(
        prompt=torch.randn(length, HIDDEN, generator=generator),
        a=torch.randn(rows, RANK, generator=generator),
        b=torch.randn(RANK, HIDDEN, generator=generator),
        scale=scale,
    )
    prompt.trained_length.fill_(trained)
    return prompt.eval()


def masks(*rows: str) -> Tensor:
    """Masks drawn as text: x is a real token, . is padding."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def test_the_update_of_a_token_is_scale_times_its_row_of_a_b() -> None:
    prompt = DecomposedPrompt(
        prompt=torch.zeros(1, 2), a=torch.tensor([[1.0], [2.0]]), b=torch.tensor([[3.0, 4.0]]), scale=0.5
    ).eval()
    prompt.trained_length.fill_(2)
    embedded = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]])
    expected = torch.tensor([[[11.5, 22.0], [33.0, 44.0]]])
    assert torch.equal(prompt.embed_text(embedded, masks("xx")), expected)
    assert torch.equal(embedded, torch.tensor([[[10.0, 20.0], [30.0, 40.0]]]))  # not in place


@pytest.mark.parametrize("training", [False, True])
def test_b_of_zero_is_exactly_no_update(training: bool) -> None:
    prompt = make_prompt().train(training)
    torch.nn.init.zeros_(prompt.b)
    embedded = torch.randn(2, 6, HIDDEN)
    assert torch.equal(prompt.embed_text(embedded, masks("xxxxxx", "xxxx..")), embedded)


def test_a_rank_of_zero_is_exactly_no_update() -> None:
    prompt = DecomposedPrompt(prompt=torch.zeros(1, 2), a=torch.zeros(4, 0), b=torch.zeros(0, 2), scale=1.0).train()
    embedded = torch.randn(1, 3, 2)
    assert torch.equal(prompt.embed_text(embedded, masks("xxx")), embedded)


def test_the_row_of_a_token_is_its_number_among_the_real_tokens() -> None:
    prompt = make_prompt().double()
    rows = prompt.a.detach() @ prompt.b.detach()
    nothing = torch.zeros(3, 5, HIDDEN, dtype=torch.float64)
    update = prompt.embed_text(nothing, masks("xxx..", "..xxx", "x.x.x")).detach()
    expected = torch.zeros_like(nothing)
    expected[0, [0, 1, 2]] = expected[1, [2, 3, 4]] = expected[2, [0, 2, 4]] = rows[:3]
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_trimmed_or_padded_to_s_are_updated_equally(side: str) -> None:
    prompt = make_prompt().double()
    text = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    mask = masks("xxxxx", "xxxxx")
    padding = (0, ROWS - 5) if side == "right" else (ROWS - 5, 0)
    padded = torch.nn.functional.pad(text, (0, 0, *padding))
    padded_mask = torch.nn.functional.pad(mask, padding)
    trimmed = prompt.embed_text(text, mask)
    torch.testing.assert_close(prompt.embed_text(padded, padded_mask)[padded_mask], trimmed[mask], rtol=0, atol=1e-14)


def test_padding_gets_no_update_and_gives_no_gradient() -> None:
    prompt = make_prompt().train()
    embedded = torch.randn(2, 6, HIDDEN)
    mask = masks("xxx...", "xxxx..")
    updated = prompt.embed_text(embedded, mask)
    assert torch.equal(updated[~mask], embedded[~mask])
    updated.sum().backward()
    assert prompt.a.grad is not None
    reached = prompt.a.grad.ne(0).any(dim=1)
    assert reached.tolist() == [True] * 4 + [False] * 4


def test_tokens_past_the_last_row_get_no_update() -> None:
    prompt = make_prompt(rows=4, trained=4)
    embedded = torch.randn(1, 6, HIDDEN)
    updated = prompt.embed_text(embedded, masks("xxxxxx"))
    assert torch.equal(updated[:, 4:], embedded[:, 4:])
    assert not torch.equal(updated[:, :4], embedded[:, :4])
    prompt.train().embed_text(embedded, masks("xxxxxx"))
    assert prompt.trained_length == 4


def test_rows_that_were_never_trained_add_nothing_at_inference() -> None:
    prompt = make_prompt(trained=3)
    embedded = torch.randn(1, 6, HIDDEN)
    updated = prompt.embed_text(embedded, masks("xxxxxx"))
    assert torch.equal(updated[:, 3:], embedded[:, 3:])
    assert updated[:, :3].ne(embedded[:, :3]).all()
    assert prompt.trained_length == 3  # looking on trains nothing


def test_in_training_every_row_that_a_text_reaches_takes_part_and_counts_from_then_on() -> None:
    prompt = make_prompt(trained=3).train()
    embedded = torch.randn(2, 6, HIDDEN)
    mask = masks("xxxxxx", "xx....")
    assert prompt.embed_text(embedded, mask)[mask].ne(embedded[mask]).all()
    assert prompt.trained_length == 6
    prompt.embed_text(embedded[:, :2], masks("xx", "xx"))  # a shorter batch takes nothing back
    assert prompt.trained_length == 6
    assert prompt.eval().embed_text(embedded, mask)[mask].ne(embedded[mask]).all()


def test_the_official_a_is_uniform_within_one_over_the_root_of_the_rank() -> None:
    rank = 25
    a = official_a(4000, rank, generator=torch.Generator().manual_seed(0))
    assert a.shape == (4000, rank)
    assert a.abs().max() <= 0.2  # 1 / sqrt(25)
    assert a.abs().max().item() == pytest.approx(0.2, abs=1e-4)
    assert a.mean().item() == pytest.approx(0, abs=0.002)
    assert a.var().item() == pytest.approx(1 / (3 * rank), rel=0.02)
    kaiming = torch.empty(4000, rank)
    torch.nn.init.kaiming_uniform_(kaiming, a=5**0.5, generator=torch.Generator().manual_seed(0))
    assert kaiming.abs().max().item() == pytest.approx(0.2, abs=1e-4)  # what the official code calls


def test_the_official_start_has_the_published_size() -> None:
    """Rows that the published CoLA run (r = 15) never reached have a root mean square of 0.149."""
    a = official_a(4000, 15, generator=torch.Generator().manual_seed(0))
    assert a.square().mean().sqrt().item() == pytest.approx(0.149, abs=0.001)


def test_the_paper_a_is_standard_normal() -> None:
    a = paper_a(4000, 25, generator=torch.Generator().manual_seed(0))
    assert a.mean().item() == pytest.approx(0, abs=0.01)
    assert a.var().item() == pytest.approx(1, abs=0.02)
    assert a.abs().max() > 3


@pytest.mark.parametrize("make", [official_a, paper_a])
def test_a_is_a_function_of_the_seed(make: Callable[..., Tensor]) -> None:
    first, again, other = (make(8, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("make", [official_a, paper_a])
def test_a_may_have_no_columns(make: Callable[..., Tensor]) -> None:
    assert make(8, 0, generator=torch.Generator()).shape == (8, 0)


@pytest.mark.parametrize("scale", [1.0, 8 * RANK**-0.5])
def test_the_official_arithmetic_padded_to_s_gives_the_same_states(
    make_t5: MakeT5, make_batch: MakeBatch, scale: float
) -> None:
    """The official code: concat(P, E(x) + c A B) with every text padded to s, through the library's encoder."""
    t5, prompt = make_t5(), make_prompt(scale=scale)
    batch = make_batch((5, 3), pad=ROWS - 5)
    assert batch.text_ids.shape[1] == ROWS
    with torch.no_grad():
        embedded = t5.get_input_embeddings()(batch.text_ids) + scale * (prompt.a @ prompt.b)
        inputs = torch.cat([prompt.prompt.expand(2, -1, -1), embedded], dim=1)
        mask = torch.cat([torch.ones(2, 3, dtype=torch.bool), batch.text_mask], dim=1)
        official = t5.encoder(inputs_embeds=inputs, attention_mask=mask.long()).last_hidden_state
        trimmed = replace(batch, text_ids=batch.text_ids[:, :5], text_mask=batch.text_mask[:, :5])
        ours, our_mask = MultimodalEncoder(t5_encoder=t5.encoder, prompt=prompt, visual_embedding=None)(trimmed)
    for row in range(2):
        torch.testing.assert_close(ours[row][our_mask[row]], official[row][mask[row]], rtol=0, atol=1e-6)


def test_gradients_are_the_same_bits_on_several_threads() -> None:
    """A sum of gradients in the order in which threads come would make runs differ from their own repetition."""
    prompt = DecomposedPrompt(prompt=torch.zeros(1, 512), a=torch.randn(16, 4), b=torch.randn(4, 512), scale=1.0)
    embedded, weights = torch.randn(2, 64, 16, 512)
    mask = torch.ones(64, 16, dtype=torch.bool)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = set()
        for _ in range(20):
            prompt.zero_grad()
            (prompt.embed_text(embedded, mask) * weights).sum().backward()
            found.add(prompt.b.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
