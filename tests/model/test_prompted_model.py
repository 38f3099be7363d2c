"""A batch's own head gives its loss and its answers, over one run of the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from dept_vl.model.heads import ClassificationHead, FirstStepHead, GenerationHead, Head
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.types import Batch

MakeT5 = Callable[..., T5ForConditionalGeneration]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., PromptedModel]

ANSWERS = ("red", "blue", "yes", "two")


@pytest.fixture
def heads(tokenizer: PreTrainedTokenizerFast) -> dict[str, Head]:
    """One of each kind."""
    torch.manual_seed(3)
    return {
        "vqa": GenerationHead(tokenizer=tokenizer, max_length=6, num_beams=3),
        "nlvr2": FirstStepHead(tokenizer=tokenizer, max_length=6, labels=ANSWERS),
        "gqa": ClassificationHead(answers=ANSWERS, hidden_size=16),
    }


@pytest.fixture
def model(whole: MakeModel, make_t5: MakeT5, heads: dict[str, Head]) -> PromptedModel:
    return whole(make_t5(), heads)


def test_the_call_itself_is_the_loss(model: PromptedModel, make_batch: MakeBatch) -> None:
    batch = make_batch((5, 3))
    assert torch.equal(model(batch).loss, model.loss(batch).loss)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "gqa"])
def test_a_batch_is_given_to_the_head_of_its_task(
    model: PromptedModel, heads: dict[str, Head], make_batch: MakeBatch, task: str
) -> None:
    batch = make_batch((5, 3, 4), task=task, answers=4)
    states, mask = model.encoder(batch)
    assert torch.equal(model.loss(batch).loss, heads[task].loss(model.backbone, states, mask, batch).loss)
    assert model.answer(batch) == heads[task].answers(model.backbone, states, mask)


def test_heads_of_different_tasks_give_different_losses(model: PromptedModel, make_batch: MakeBatch) -> None:
    batch = make_batch((5, 3), answers=4)
    assert not torch.equal(model.loss(batch).loss, model.loss(replace(batch, task="gqa")).loss)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "gqa"])
def test_the_encoder_runs_once_for_all_beams(model: PromptedModel, make_batch: MakeBatch, task: str) -> None:
    sizes: list[int] = []
    model.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    model.answer(make_batch((5, 3), task=task))
    assert sizes == [2]


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "gqa"])
def test_answering_keeps_no_gradient(model: PromptedModel, make_batch: MakeBatch, task: str) -> None:
    states: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    model.answer(make_batch((5,), task=task))
    assert not states[0].requires_grad
