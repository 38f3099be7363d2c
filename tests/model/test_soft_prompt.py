"""The soft prompt and the three ways to start it."""

from __future__ import annotations

import pytest
import torch

from dept_vl.model.soft_prompt import COMMON_TOKENS, SoftPrompt, TaskPrompts, from_normal, from_text, from_vocabulary


def table(rows: int, width: int = 4) -> torch.Tensor:
    """Embeddings whose numbers tell their token id."""
    return torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, width).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_soft_prompt_leaves_the_text_as_it_is() -> None:
    embedded = torch.randn(2, 5, 4)
    prompt = SoftPrompt(torch.ones(3, 4))
    assert prompt.embed_text(embedded, torch.ones(2, 5, dtype=torch.bool)) is embedded
    assert [name for name, _ in prompt.named_parameters()] == ["prompt"]
    assert not list(prompt.buffers())


def test_one_prompt_serves_every_task_under_one_name() -> None:
    prompt = SoftPrompt(torch.ones(3, 4))
    assert prompt.for_task("vqa") is prompt.for_task("caption") is prompt
    assert prompt.by_name() == {"prompt": prompt}


def test_each_task_may_have_a_prompt_of_its_own_under_its_name() -> None:
    vqa, caption = SoftPrompt(torch.ones(3, 4)), SoftPrompt(torch.zeros(2, 4))
    prompts = TaskPrompts({"vqa": vqa, "caption": caption})
    assert prompts.for_task("vqa") is vqa
    assert prompts.for_task("caption") is caption
    assert prompts.by_name() == {"prompt.vqa": vqa, "prompt.caption": caption}
    assert {id(value) for value in prompts.parameters()} == {id(vqa.prompt), id(caption.prompt)}


def test_vocabulary_rows_are_sampled_from_the_common_tokens_without_the_special_ones() -> None:
    drawn = from_vocabulary(table(6000), 20_000, special_ids=[0, 1, 2, 100], generator=generator())
    ids = set(drawn[:, 0].long().tolist())
    assert not ids & {0, 1, 2, 100}
    assert max(ids) < COMMON_TOKENS + 4  # the 5,000 lowest of the others
    assert len(ids) > 4800  # of 5,000: nearly all come in 20,000 draws
    assert torch.equal(drawn, drawn[:, :1].expand(-1, 4))  # whole rows


def test_a_vocabulary_smaller_than_the_common_tokens_is_used_whole() -> None:
    drawn = from_vocabulary(table(10), 1000, special_ids=[0, 1], generator=generator())
    assert set(drawn[:, 0].long().tolist()) == set(range(2, 10))


def test_the_vocabulary_prompt_is_a_function_of_the_seed() -> None:
    first, again, other = (
        from_vocabulary(table(6000), 10, special_ids=[], generator=generator(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("length", "expected"), [(2, [7, 8]), (3, [7, 8, 1]), (7, [7, 8, 1, 7, 8, 1, 7]), (0, [])])
def test_a_text_is_repeated_and_cut_to_the_prompt_length(length: int, expected: list[int]) -> None:
    prompt = from_text(table(10), length, token_ids=[7, 8, 1])
    assert prompt[:, 0].long().tolist() == expected
    assert prompt.shape == (length, 4)


def test_starting_from_embeddings_copies_them() -> None:
    embeddings = table(10)
    for prompt in (
        from_text(embeddings, 3, token_ids=[7, 8]),
        from_vocabulary(embeddings, 3, special_ids=[], generator=generator()),
    ):
        prompt.fill_(-1.0)
    assert torch.equal(embeddings, table(10))


def test_the_normal_start_has_mean_zero_and_variance_one() -> None:
    prompt = from_normal(200, 500, generator=generator())
    assert prompt.shape == (200, 500)
    assert prompt.mean().item() == pytest.approx(0, abs=0.01)
    assert prompt.var().item() == pytest.approx(1, abs=0.02)
