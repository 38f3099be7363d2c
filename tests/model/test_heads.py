"""Losses and answers of each head, against the library and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from dept_vl.model.heads import ClassificationHead, FirstStepHead, GenerationHead, Head
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

MakeT5 = Callable[..., T5ForConditionalGeneration]
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., PromptedModel]
MakeHead = Callable[..., Head]

ONE_TOKEN = ("red", "blue", "green", "yes", "two")
SEVERAL_TOKENS = ("red", "red dog", "red dog ?", "how many", "the", "the the the the the the the")
KINDS = ("generation", "constrained", "first_step", "classification")


@pytest.fixture
def make_head(tokenizer: PreTrainedTokenizerFast) -> MakeHead:
    """Heads of a kind with the answers ``ONE_TOKEN``."""

    def make(kind: str = "generation", **options: Any) -> Head:
        torch.manual_seed(5)
        if kind == "classification":
            return ClassificationHead(**{"answers": ONE_TOKEN, "hidden_size": 16} | options)
        if kind == "first_step":
            return FirstStepHead(**{"tokenizer": tokenizer, "max_length": 6, "labels": ONE_TOKEN} | options)
        answers = ONE_TOKEN if kind == "constrained" else None
        return GenerationHead(**{"tokenizer": tokenizer, "max_length": 6, "answers": answers} | options)

    return make


def part(batch: Batch, rows: slice) -> Batch:
    """Some examples of a batch."""
    some = {name: tensor[rows] for name, tensor in batch.tensors().items()}
    return replace(batch, example_ids=batch.example_ids[rows], **some)


def up_to_the_end(ids: Tensor) -> list[list[int]]:
    """Generated ids up to the end token; what follows is padding."""
    rows = ids.tolist()
    return [row[: row.index(1)] if 1 in row else row for row in rows]


def generate(model: PromptedModel, batch: Batch) -> Tensor:
    head = model.heads[batch.task]
    assert isinstance(head, GenerationHead)
    with torch.no_grad():
        states, mask = model.encoder(batch)
        return head.generate(model.backbone, states, mask)


def library_logits(model: PromptedModel, batch: Batch, decoder_input_ids: Tensor) -> Tensor:
    """What the library's model gives for our encoder states."""
    states, mask = model.encoder(batch)
    logits: Tensor = model.backbone(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=decoder_input_ids,
    ).logits
    return logits


@pytest.fixture
def uneven(make_batch: MakeBatch) -> Batch:
    """Targets of three and two tokens, of weights 1 and 0.3."""
    return replace(
        make_batch((5, 3)),
        target_ids=torch.tensor([[7, 9, 1], [8, 1, 0]]),
        target_mask=torch.tensor([[True, True, True], [True, True, False]]),
        target_weights=torch.tensor([1.0, 0.3]),
    )


def costs(model: PromptedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The summed cost of the real tokens of the targets of ``uneven``."""
    all_costs = -functional.log_softmax(library_logits(model, batch, torch.tensor([[0, 7, 9], [0, 8, 1]])), dim=-1)
    return (
        all_costs[0, 0, 7] + all_costs[0, 1, 9] + all_costs[0, 2, 1],
        all_costs[1, 0, 8] + all_costs[1, 1, 1],
    )


class TestGenerationLoss:
    @pytest.mark.parametrize("token_mean", [False, True])
    def test_with_weights_of_one_and_no_padding_it_is_the_library_s(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, token_mean: bool
    ) -> None:
        t5, batch = make_t5(), make_batch((5, 3))
        library = t5(input_ids=batch.text_ids, attention_mask=batch.text_mask.long(), labels=batch.target_ids).loss
        output = plain(t5, make_head(token_mean=token_mean)).loss(batch)
        torch.testing.assert_close(output.loss, library, rtol=0, atol=1e-6)
        assert output.weight == (6 if token_mean else 2)  # target tokens, or examples

    def test_it_is_the_weighted_mean_over_examples_of_their_mean_over_real_tokens(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, uneven: Batch
    ) -> None:
        model = whole(make_t5(), make_head())
        first, second = costs(model, uneven)
        output = model.loss(uneven)
        torch.testing.assert_close(output.loss, (1.0 * first / 3 + 0.3 * second / 2) / 2, rtol=0, atol=1e-6)
        assert output.weight == 2

    def test_the_mean_over_tokens_is_the_library_s_of_labels_that_leave_padding_out(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, uneven: Batch
    ) -> None:
        t5, batch = make_t5(), replace(uneven, target_weights=torch.ones(2))
        labels = batch.target_ids.masked_fill(~batch.target_mask, -100)
        library = t5(input_ids=batch.text_ids, attention_mask=batch.text_mask.long(), labels=labels).loss
        output = plain(t5, make_head(token_mean=True)).loss(batch)
        torch.testing.assert_close(output.loss, library, rtol=0, atol=1e-6)
        assert output.weight == 5

    @pytest.mark.parametrize("weights", [(1.0, 0.3), (0.2, 0.1), (0.3, 0.0), (2.0, 2.0)])
    def test_in_the_mean_over_tokens_each_counts_by_its_example_s_weight(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, uneven: Batch, weights: tuple[float, float]
    ) -> None:
        model = whole(make_t5(), make_head(token_mean=True))
        first, second = costs(model, uneven)
        expected = (weights[0] * first + weights[1] * second) / (3 * weights[0] + 2 * weights[1])
        output = model.loss(replace(uneven, target_weights=torch.tensor(weights)))
        torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-6)

    def test_equal_logits_cost_the_logarithm_of_the_vocabulary_times_the_mean_weight(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        t5 = make_t5()
        torch.nn.init.zeros_(t5.decoder.final_layer_norm.weight)
        batch = replace(make_batch((5, 3)), target_weights=torch.tensor([0.9, 0.3]))
        loss = plain(t5, make_head()).loss(batch).loss.item()
        assert loss == pytest.approx(0.6 * math.log(t5.config.vocab_size), rel=1e-6)

    @pytest.mark.parametrize("token_mean", [False, True])
    def test_padding_of_texts_and_targets_changes_nothing(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, token_mean: bool
    ) -> None:
        model = whole(make_t5(), make_head(token_mean=token_mean))
        batch = make_batch((5, 3))
        padded = replace(
            make_batch((5, 3), pad=3),
            target_ids=functional.pad(batch.target_ids, (0, 2)),
            target_mask=functional.pad(batch.target_mask, (0, 2)),
        )
        torch.testing.assert_close(model.loss(padded).loss, model.loss(batch).loss, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("token_mean", [False, True])
    def test_examples_without_a_target_cost_nothing(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, token_mean: bool
    ) -> None:
        nothing = {"target_mask": torch.zeros(2, 3, dtype=torch.bool), "target_weights": torch.zeros(2)}
        output = whole(make_t5(), make_head(token_mean=token_mean)).loss(replace(make_batch((5, 3)), **nothing))
        assert output.loss == 0
        assert output.weight == pytest.approx(1e-6 if token_mean else 2)  # never a division by zero

    @pytest.mark.parametrize("kind", ["constrained", "first_step"])
    def test_restricting_the_answers_changes_no_loss(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, kind: str
    ) -> None:
        batch = make_batch((5, 3))
        free, restricted = (whole(make_t5(), make_head(one)).loss(batch).loss for one in ("generation", kind))
        assert torch.equal(free, restricted)


class TestGeneration:
    @pytest.mark.parametrize("num_beams", [1, 4])
    def test_without_prompt_and_images_the_answers_are_the_library_s(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, num_beams: int
    ) -> None:
        t5, batch = make_t5(seed=1), make_batch((7, 5, 3, 2))
        library = t5.generate(
            inputs_embeds=t5.get_input_embeddings()(batch.text_ids),
            attention_mask=batch.text_mask.long(),
            max_new_tokens=6,
            num_beams=num_beams,
            do_sample=False,
        )
        assert torch.equal(generate(plain(t5, make_head(num_beams=num_beams)), batch), library[:, 1:])

    def test_beams_find_other_answers_than_greedy_search(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        t5, batch = make_t5(seed=1), make_batch((7, 5, 3, 2))
        greedy, beams = (generate(plain(t5, make_head(num_beams=count)), batch) for count in (1, 4))
        assert up_to_the_end(greedy) != up_to_the_end(beams)  # so that the test above can tell them apart

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_answers_do_not_depend_on_the_batch(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, num_beams: int
    ) -> None:
        model, batch = whole(make_t5(), make_head(num_beams=num_beams)), make_batch((7, 5, 3, 2, 6, 4))
        together = up_to_the_end(generate(model, batch))
        alone = [up_to_the_end(generate(model, part(batch, slice(row, row + 1))))[0] for row in range(6)]
        assert together == alone
        assert len(set(map(tuple, together))) > 1

    def test_generating_twice_gives_the_same(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        model, batch = whole(make_t5(), make_head(num_beams=3)), make_batch((5, 3))
        assert torch.equal(generate(model, batch), generate(model, batch))

    def test_an_answer_has_at_most_the_given_tokens(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        assert generate(whole(make_t5(), make_head(max_length=2)), make_batch((5, 3))).shape[1] <= 2

    def test_answers_are_the_generated_ids_as_text_without_special_tokens(
        self,
        whole: MakeModel,
        make_t5: MakeT5,
        make_head: MakeHead,
        make_batch: MakeBatch,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        model, batch = whole(make_t5(), make_head(num_beams=3)), make_batch((5, 3, 7, 2))
        decoded = [tokenizer.decode([one for one in row if one > 2]) for row in up_to_the_end(generate(model, batch))]
        assert model.answer(batch) == decoded


class TestConstrainedGeneration:
    @pytest.mark.parametrize("num_beams", [1, 2, 5, 9])  # also more beams than there are answers
    @pytest.mark.parametrize("answers", [ONE_TOKEN, SEVERAL_TOKENS, ("red",)])
    @pytest.mark.parametrize("seed", range(3))
    def test_only_answers_of_the_vocabulary_are_given(
        self,
        whole: MakeModel,
        make_t5: MakeT5,
        make_head: MakeHead,
        make_batch: MakeBatch,
        seed: int,
        answers: Sequence[str],
        num_beams: int,
    ) -> None:
        batch = make_batch((7, 5, 3, 2), seed=seed)
        free = whole(make_t5(seed), make_head(num_beams=num_beams)).answer(batch)
        assert not set(free) & set(answers)  # the models by themselves say something else
        head = make_head("constrained", answers=answers, num_beams=num_beams)
        assert set(whole(make_t5(seed), head).answer(batch)) <= set(answers)

    @pytest.mark.parametrize("seed", range(4))
    def test_greedy_search_takes_the_likeliest_answer_of_one_token(
        self,
        whole: MakeModel,
        make_t5: MakeT5,
        make_head: MakeHead,
        make_batch: MakeBatch,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
    ) -> None:
        model, batch = whole(make_t5(seed), make_head("constrained")), make_batch((7, 5, 3, 2, 6), seed=seed)
        first = tokenizer.convert_tokens_to_ids(list(ONE_TOKEN))
        logits = library_logits(model, batch, torch.zeros(5, 1, dtype=torch.int64))[:, 0, first]
        assert model.answer(batch) == [ONE_TOKEN[index] for index in logits.argmax(dim=1).tolist()]

    @pytest.mark.parametrize("seed", range(4))
    def test_enough_beams_find_the_best_of_all_answers_of_one_token(
        self,
        whole: MakeModel,
        make_t5: MakeT5,
        make_head: MakeHead,
        make_batch: MakeBatch,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
    ) -> None:
        """The best by the probability of the token and of the end behind it."""
        model = whole(make_t5(seed), make_head("constrained", num_beams=5))
        batch = make_batch((7, 5, 3, 2, 6), seed=seed)
        scores = []
        for token in tokenizer.convert_tokens_to_ids(list(ONE_TOKEN)):
            logits = library_logits(model, batch, torch.tensor([[0, token]]).expand(5, -1))
            chances = functional.log_softmax(logits, dim=-1)
            scores.append(chances[:, 0, token] + chances[:, 1, 1])
        best = torch.stack(scores, dim=1).argmax(dim=1)
        assert model.answer(batch) == [ONE_TOKEN[index] for index in best.tolist()]

    def test_an_answer_of_the_vocabulary_is_never_cut(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        long = "the the the the the the the the"
        assert plain(make_t5(), make_head("constrained", answers=[long], max_length=2)).answer(make_batch((5,))) == [
            long
        ]

    def test_an_answer_is_spelled_as_in_the_list_whatever_the_tokenizer_makes_of_it(
        self, plain: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        for answer in ("red  dog", "purple", "", "</s>"):  # two spaces; an unknown word; nothing; a special token
            assert plain(make_t5(), make_head("constrained", answers=[answer])).answer(make_batch((5,))) == [answer]

    def test_no_answers_are_refused(self, make_head: MakeHead) -> None:
        with pytest.raises(UsageError) as raised:
            make_head("constrained", answers=[])
        assert str(raised.value) == (
            "There is no answer to choose from. Give training examples with answers, or a list"
        )


class TestFirstStep:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_answer_is_the_label_whose_first_token_is_the_likeliest(
        self,
        whole: MakeModel,
        make_t5: MakeT5,
        make_head: MakeHead,
        make_batch: MakeBatch,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
    ) -> None:
        labels = ["red dog", "blue", "is this shape", "no"]
        model, batch = whole(make_t5(seed), make_head("first_step", labels=labels)), make_batch((7, 5, 3, 2), seed=seed)
        first = tokenizer.convert_tokens_to_ids(["red", "blue", "is", "no"])
        logits = library_logits(model, batch, torch.zeros(4, 1, dtype=torch.int64))[:, 0, first]
        assert model.answer(batch) == [labels[index] for index in logits.argmax(dim=1).tolist()]

    def test_the_first_token_of_nothing_is_the_end(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead
    ) -> None:
        head = make_head("first_step", labels=["red", ""])
        assert isinstance(head, FirstStepHead)
        assert head.first_tokens.tolist() == [head.tokenizer.convert_tokens_to_ids("red"), 1]

    def test_it_goes_to_the_model_s_device_and_into_no_file(self, make_head: MakeHead) -> None:
        head = make_head("first_step")
        assert [name for name, _ in head.named_buffers()] == ["first_tokens"]
        assert not head.state_dict()

    @pytest.mark.parametrize(
        ("labels", "tokens"),
        [
            (
                ["red dog", "blue", "red cat"],
                r"\['red dog', 'blue', 'red cat'\] begin with the tokens \[\d+, \d+, \d+\]",
            ),
            (["red"], r"\['red'\] begin with the tokens \[\d+\]"),
            ([], r"\[\] begin with the tokens \[\]"),
        ],
    )
    def test_labels_that_it_cannot_tell_apart_are_refused(
        self, make_head: MakeHead, labels: list[str], tokens: str
    ) -> None:
        message = (
            rf"^task\.head=first_step tells labels apart by their first token; the task's labels {tokens}\. "
            r"Set task\.head=generation, and task\.constrained=true for labels only$"
        )
        with pytest.raises(UsageError, match=message):
            make_head("first_step", labels=labels)


class TestClassification:
    def logits(self, model: PromptedModel, batch: Batch) -> Tensor:
        """The head's layers over the library's decoder state at the start token."""
        states, mask = model.encoder(batch)
        output = model.backbone(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=torch.zeros(len(states), 1, dtype=torch.int64),
            output_hidden_states=True,
        )
        first, gelu, norm, last = model.heads["vqa"].layers
        assert (first.out_features, last.out_features) == (32, 5)
        state = output.decoder_hidden_states[-1][:, 0]
        logits: Tensor = last(norm(gelu(first(state))))
        return logits

    def test_the_loss_is_the_binary_cross_entropy_summed_over_answers_and_averaged_over_examples(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        model, batch = whole(make_t5(), make_head("classification")), make_batch((5, 3, 4), answers=5)
        probability, score = self.logits(model, batch).sigmoid(), batch.answer_scores
        by_hand = -(score * probability.log() + (1 - score) * (1 - probability).log())
        output = model.loss(batch)
        torch.testing.assert_close(output.loss, by_hand.sum() / 3, rtol=1e-5, atol=0)
        assert output.weight == 3

    def test_the_answer_is_that_of_the_largest_logit(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch
    ) -> None:
        found = set()
        for seed in range(4):
            model, batch = whole(make_t5(seed), make_head("classification")), make_batch((7, 5, 3, 2), seed=seed)
            expected = [ONE_TOKEN[index] for index in self.logits(model, batch).argmax(dim=1).tolist()]
            assert model.answer(batch) == expected
            found |= set(expected)
        assert len(found) > 1

    def test_targets_and_their_weights_do_not_matter(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, uneven: Batch
    ) -> None:
        """Only the scores of the answers do."""
        model, batch = whole(make_t5(), make_head("classification")), make_batch((5, 3), answers=5)
        other = replace(uneven, answer_scores=batch.answer_scores)
        assert torch.equal(model.loss(batch).loss, model.loss(other).loss)


class TestEveryHead:
    @pytest.mark.parametrize("kind", KINDS)
    def test_padding_changes_neither_loss_nor_answers(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, kind: str
    ) -> None:
        model = whole(make_t5(), make_head(kind))
        lengths = (7, 5, 3, 2, 6)
        batch = make_batch(lengths, answers=5)
        for pad_left in (False, True):
            padded = make_batch(lengths, answers=5, pad=4, pad_left=pad_left)
            assert model.answer(padded) == model.answer(batch)
            torch.testing.assert_close(model.loss(padded).loss, model.loss(batch).loss, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_answer_does_not_depend_on_its_batch(
        self, whole: MakeModel, make_t5: MakeT5, make_head: MakeHead, make_batch: MakeBatch, kind: str
    ) -> None:
        model, batch = whole(make_t5(), make_head(kind)), make_batch((7, 5, 3, 2, 6), answers=5)
        assert model.answer(batch) == [model.answer(part(batch, slice(row, row + 1)))[0] for row in range(5)]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
    def test_bf16_gives_a_loss_in_fp32_gradients_and_answers(
        self,
        whole: MakeModel,
        make_t5: MakeT5,
        make_head: MakeHead,
        make_batch: MakeBatch,
        kind: str,
        weights: torch.dtype,
    ) -> None:
        """Frozen weights are bf16, or fp32 with method full; what trains is fp32."""
        t5 = make_t5().to(weights)
        model, batch = whole(t5, make_head(kind)), make_batch((5, 3), answers=5)
        exact = whole(make_t5(), make_head(kind)).loss(batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(batch).loss
            answers = model.answer(batch)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
        assert len(answers) == 2
        loss.backward()
        parts = (model.encoder.prompt, model.encoder.visual_embedding, model.heads)
        gradients = [value.grad for part in parts if part is not None for value in part.parameters()]
        assert all(one is not None and one.dtype == torch.float32 and one.isfinite().all() for one in gradients)
