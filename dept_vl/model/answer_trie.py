"""The answers of a vocabulary as a tree of tokens, which tells a search what may come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dept_vl.types import Frame
from feature_extraction.errors import UsageError

Node = dict[int, Any]  # token id: the node behind it


class AnswerTrie:
    """Answers and the tokens of each, which the end token follows.

    Args:
        start: generated ids begin with so many that are no part of an answer.
    """

    def __init__(self, answers: Mapping[str, Sequence[int]], *, end_id: int, start: int = 1) -> None:
        self._start = start
        self.longest = max(map(len, answers.values())) + 1  # tokens, end token included
        self._end_id = end_id
        self._root: Node = {}
        self._texts: dict[tuple[int, ...], str] = {}
        for text, tokens in answers.items():
            self._texts.setdefault(tuple(tokens), text)  # of several with the same tokens, the first
            node = self._root
            for token in [*tokens, end_id]:
                node = node.setdefault(token, {})

    @classmethod
    def from_texts(
        cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, frame: Frame, start: int = 1
    ) -> AnswerTrie:
        """The trie of some texts.

        Raises:
            UsageError: there is no text.
        """
        if not texts:
            raise UsageError("There is no answer to choose from. Give training examples with answers, or a list")
        end_id = tokenizer.eos_token_id
        rows = tokenizer([frame.target_prefix + text for text in texts], add_special_tokens=False)["input_ids"]
        framed = [[*frame.target_before, *(token for token in row if token != end_id)] for row in rows]
        return cls(dict(zip(texts, framed, strict=True)), end_id=end_id, start=start)

    def allowed(self, row: int, ids: Tensor) -> list[int]:
        """The tokens that may follow ``ids``, those before the answer included (transformers' signature).

        After the end of an answer it is the end token again, as transformers asks for finished rows too.
        """
        node = self._root
        for token in ids[self._start :].tolist():
            node = node.get(token, {})
        return list(node) or [self._end_id]

    def text(self, ids: Sequence[int]) -> str:
        """The answer of some token ids up to the end token, as the list spells it (decoding may not)."""
        return self._texts[tuple(takewhile(lambda token: token != self._end_id, ids))]
