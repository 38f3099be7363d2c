"""What turns encoder states into a loss and into answers; every head is called in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dept_vl.model.answer_trie import AnswerTrie
from dept_vl.model.families import EncoderDecoder, EncoderOnly, Family
from dept_vl.types import Batch, Frame
from feature_extraction.errors import UsageError

ENCODER_DECODER, NO_FRAME = EncoderDecoder(), Frame()


class StepOutput(NamedTuple):
    """The loss of a batch: a mean, and what it is divided by, which is its weight in a mean over processes."""

    loss: Float[Tensor, ""]
    weight: Float[Tensor, ""]  # examples, or target tokens times their examples' weights


class GenerationHead(nn.Module):
    """Answers as text: cross-entropy of the target's tokens, and greedy or beam search.

    Args:
        max_length: most tokens of an answer, end token included.
        token_mean: the loss is the mean over all target tokens of a batch (VL-T5's captions, where long targets weigh
            more). Otherwise it is the mean over an example's tokens times its weight, and the mean of that over the
            batch (VL-T5's VQA).
        answers: the only answers there are; None for any text.
        family: of the language model.
        frame: of the language model's targets.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        num_beams: int = 1,
        token_mean: bool = False,
        answers: Sequence[str] | None = None,
        family: Family = ENCODER_DECODER,
        frame: Frame = NO_FRAME,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.family = family
        self.frame = frame
        self.num_beams = num_beams
        self.token_mean = token_mean
        self.trie = (
            None if answers is None else AnswerTrie.from_texts(answers, tokenizer, frame=frame, start=family.start)
        )
        # An answer of the vocabulary is never cut: half of it would be none.
        self.max_length = max_length if self.trie is None else max(max_length, self.trie.longest)

    def loss(
        self,
        model: PreTrainedModel,
        states: Float[Tensor, "B S H"],
        mask: Bool[Tensor, "B S"],
        batch: Batch,
    ) -> StepOutput:
        """The loss of a batch."""
        by_token = self.family.target_entropy(model, states, mask, batch)
        tokens = batch.target_mask.sum(dim=1)
        by_example = (by_token * batch.target_mask).sum(dim=1)
        if self.token_mean:
            weight = (tokens * batch.target_weights).sum().clamp(min=1e-6)
            return StepOutput((by_example * batch.target_weights).sum() / weight, weight)
        return _mean(by_example / tokens.clamp(min=1) * batch.target_weights)

    def answers(self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> list[str]:
        """The most likely answer to each example."""
        ids = self.generate(model, states, mask)
        if self.trie is not None:
            return [self.trie.text(row) for row in ids.tolist()]
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.removeprefix(self.frame.target_prefix) for text in texts]

    def generate(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Int64[Tensor, "B L"]:
        """The token ids of the most likely answers, end token included."""
        allowed = None if self.trie is None else self.trie.allowed
        return self.family.generate(
            model, states, mask, max_length=self.max_length, num_beams=self.num_beams, allowed=allowed
        )


class FirstStepHead(GenerationHead):
    """Trained like generation; the answer is the label whose first token is the likeliest (VL-T5's NLVR2)."""

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        labels: Sequence[str],
        family: Family = ENCODER_DECODER,
        frame: Frame = NO_FRAME,
    ) -> None:
        """Take the labels.

        Raises:
            UsageError: there are no two labels, or two begin with the same token.
        """
        super().__init__(tokenizer=tokenizer, max_length=max_length, family=family, frame=frame)
        texts = [frame.target_prefix + label for label in labels]
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if labels else []
        first = [[*row, tokenizer.eos_token_id][0] for row in rows]
        if len(labels) < 2 or len(set(first)) < len(labels):
            raise UsageError(
                f"task.head=first_step tells labels apart by their first token; the task's labels {list(labels)} begin "
                f"with the tokens {first}. Set task.head=generation, and task.constrained=true for labels only"
            )
        self.labels = list(labels)
        self.register_buffer("first_tokens", torch.tensor(first), persistent=False)

    first_tokens: Int64[Tensor, " labels"]

    def answers(self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> list[str]:
        """The likeliest label of each example."""
        logits = self.family.first_logits(model, states, mask)[:, self.first_tokens]
        return [self.labels[index] for index in logits.argmax(dim=1).tolist()]


class ClassificationHead(nn.Module):
    """One of A answers, from one state of the model (VL-T5's and LXMERT's answer head).

    The state is the decoder's at its start token, the text's last one of a decoder-only model, or the first one of an
    encoder-only model.

    ``Linear → GELU → LayerNorm → Linear``, trained by binary cross-entropy with soft targets, summed over the answers.
    """

    def __init__(
        self, *, answers: Sequence[str], hidden_size: int, family: Family | EncoderOnly = ENCODER_DECODER
    ) -> None:
        super().__init__()
        self.family = family
        self.vocabulary = list(answers)
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.LayerNorm(2 * hidden_size),
            nn.Linear(2 * hidden_size, len(answers)),
        )

    def loss(
        self,
        model: PreTrainedModel,
        states: Float[Tensor, "B S H"],
        mask: Bool[Tensor, "B S"],
        batch: Batch,
    ) -> StepOutput:
        """The loss of a batch, whose answers outside the vocabulary count as none."""
        logits = self._logits(model, states, mask)
        entropy = functional.binary_cross_entropy_with_logits(logits, batch.answer_scores, reduction="none")
        return _mean(entropy.sum(dim=1))

    def answers(self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> list[str]:
        """The likeliest answer to each example."""
        return [self.vocabulary[index] for index in self._logits(model, states, mask).argmax(dim=1).tolist()]

    def _logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B A"]:
        hidden = self.family.first_state(model, states, mask)
        # Under bf16 autocast the linear layers choose bf16 themselves.
        logits: Tensor = self.layers(hidden.float())
        return logits.float()


Head = GenerationHead | ClassificationHead


def _mean(by_example: Float[Tensor, " B"]) -> StepOutput:
    return StepOutput(by_example.mean(), by_example.new_full((), float(len(by_example))))
