"""The loss and the generated answers, against the library and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.model.vl_t5 import VLT5
from dept_vl.types import Batch

MakeT5 = Callable[..., T5ForConditionalGeneration]
MakeBatch = Callable[..., Batch]


def plain(t5: T5ForConditionalGeneration) -> VLT5:
    """Without prompt and images."""
    return VLT5(t5=t5, encoder=MultimodalEncoder(t5_encoder=t5.encoder, prompt=None, visual_embedding=None)).eval()


def whole(t5: T5ForConditionalGeneration) -> VLT5:
    """With a decomposed prompt and images."""
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(1)
    prompt = DecomposedPrompt(
        prompt=torch.randn(3, 16, generator=generator),
        a=torch.randn(8, 2, generator=generator),
        b=torch.randn(2, 16, generator=generator),
        scale=1.0,
    )
    prompt.trained_length.fill_(8)
    visual = VisualEmbedding(feature_width=6, hidden_size=16, images=1, tokens_per_image=4, epsilon=1e-6)
    encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=prompt, visual_embedding=visual)
    return VLT5(t5=t5, encoder=encoder).eval()


def part(batch: Batch, rows: slice) -> Batch:
    """Some examples of a batch."""
    return Batch(**{name: getattr(batch, name)[rows] for name in Batch.__slots__})


def answers(ids: Tensor) -> list[list[int]]:
    """Generated ids up to the end token; what follows is padding."""
    rows = ids.tolist()
    return [row[: row.index(1)] if 1 in row else row for row in rows]


def test_with_weights_of_one_and_no_padding_the_loss_is_the_library_s(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    t5, batch = make_t5(), make_batch((5, 3))
    library = t5(input_ids=batch.text_ids, attention_mask=batch.text_mask.long(), labels=batch.target_ids).loss
    output = plain(t5).loss(batch)
    torch.testing.assert_close(output.loss, library, rtol=0, atol=1e-6)
    assert output.target_tokens == 6


def test_the_call_itself_is_the_loss(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    model, batch = whole(make_t5()), make_batch((5, 3))
    assert torch.equal(model(batch).loss, model.loss(batch).loss)


def test_the_loss_is_the_weighted_mean_over_examples_of_their_mean_over_real_tokens(
    make_t5: MakeT5, make_batch: MakeBatch
) -> None:
    model = whole(make_t5())
    batch = replace(
        make_batch((5, 3)),
        target_ids=torch.tensor([[7, 9, 1], [8, 1, 0]]),
        target_mask=torch.tensor([[True, True, True], [True, True, False]]),
        target_weights=torch.tensor([1.0, 0.3]),
    )
    states, mask = model.encoder(batch)
    logits = model.t5(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=torch.tensor([[0, 7, 9], [0, 8, 1]]),
    ).logits
    costs = -functional.log_softmax(logits, dim=-1)
    first = (costs[0, 0, 7] + costs[0, 1, 9] + costs[0, 2, 1]) / 3
    second = (costs[1, 0, 8] + costs[1, 1, 1]) / 2
    output = model.loss(batch)
    torch.testing.assert_close(output.loss, (1.0 * first + 0.3 * second) / 2, rtol=0, atol=1e-6)
    assert output.target_tokens == 5


def test_equal_logits_cost_the_logarithm_of_the_vocabulary_times_the_mean_weight(
    make_t5: MakeT5, make_batch: MakeBatch
) -> None:
    t5 = make_t5()
    torch.nn.init.zeros_(t5.decoder.final_layer_norm.weight)
    batch = replace(make_batch((5, 3)), target_weights=torch.tensor([0.9, 0.3]))
    assert plain(t5).loss(batch).loss.item() == pytest.approx(0.6 * math.log(t5.config.vocab_size), rel=1e-6)


def test_padding_of_texts_and_targets_changes_no_loss(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    model = whole(make_t5())
    batch = make_batch((5, 3))
    padded = replace(
        make_batch((5, 3), pad=3),
        target_ids=functional.pad(batch.target_ids, (0, 2)),
        target_mask=functional.pad(batch.target_mask, (0, 2)),
    )
    torch.testing.assert_close(model.loss(padded).loss, model.loss(batch).loss, rtol=0, atol=1e-6)


def test_examples_without_a_target_cost_nothing(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    batch = replace(make_batch((5, 3)), target_mask=torch.zeros(2, 3, dtype=torch.bool), target_weights=torch.zeros(2))
    output = whole(make_t5()).loss(batch)
    assert output.loss == 0
    assert output.target_tokens == 0


@pytest.mark.parametrize("num_beams", [1, 4])
def test_without_prompt_and_images_the_answers_are_the_library_s(
    make_t5: MakeT5, make_batch: MakeBatch, num_beams: int
) -> None:
    t5, batch = make_t5(), make_batch((7, 5, 3, 2))
    library = t5.generate(
        inputs_embeds=t5.get_input_embeddings()(batch.text_ids),
        attention_mask=batch.text_mask.long(),
        max_new_tokens=6,
        num_beams=num_beams,
        do_sample=False,
    )
    assert torch.equal(plain(t5).generate(batch, max_length=6, num_beams=num_beams), library[:, 1:])


def test_beams_find_other_answers_than_greedy_search(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    model, batch = plain(make_t5()), make_batch((7, 5, 3, 2))
    greedy, beams = (model.generate(batch, max_length=6, num_beams=count) for count in (1, 4))
    assert answers(greedy) != answers(beams)  # so that the test above can tell them apart


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_do_not_depend_on_the_batch(make_t5: MakeT5, make_batch: MakeBatch, num_beams: int) -> None:
    model, batch = whole(make_t5()), make_batch((7, 5, 3, 2, 6, 4))
    together = answers(model.generate(batch, max_length=6, num_beams=num_beams))
    alone = [
        answers(model.generate(part(batch, slice(row, row + 1)), max_length=6, num_beams=num_beams))[0]
        for row in range(6)
    ]
    assert together == alone
    assert len(set(map(tuple, together))) > 1


def test_generating_twice_gives_the_same(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    model, batch = whole(make_t5()), make_batch((5, 3))
    assert torch.equal(
        model.generate(batch, max_length=4, num_beams=3), model.generate(batch, max_length=4, num_beams=3)
    )


def test_an_answer_has_at_most_the_given_tokens(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    assert whole(make_t5()).generate(make_batch((5, 3)), max_length=2).shape[1] <= 2


def test_the_encoder_runs_once_for_all_beams(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    model, batch = whole(make_t5()), make_batch((5, 3))
    sizes: list[int] = []
    model.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    model.generate(batch, max_length=6, num_beams=3)
    assert sizes == [2]


def test_generating_keeps_no_gradient(make_t5: MakeT5, make_batch: MakeBatch) -> None:
    assert not whole(make_t5()).generate(make_batch((5,)), max_length=3).requires_grad
