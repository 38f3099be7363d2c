"""The answers of a vocabulary as a tree of tokens, which tells a search what may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from feature_extraction.errors import UsageError

Node = dict[int, Any]  # token id: the node behind it


class AnswerTrie:
    """Token sequences that each end with the end token."""

    def __init__(self, sequences: Sequence[Sequence[int]], *, end_id: int) -> None:
        self.longest = max(map(len, sequences)) + 1  # tokens, end token included
        self._end_id = end_id
        self._root: Node = {}
        for sequence in sequences:
            node = self._root
            for token in [*sequence, end_id]:
                node = node.setdefault(token, {})

    @classmethod
    def from_texts(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> AnswerTrie:
        """The trie of some texts.

        Raises:
            UsageError: there is no text.
        """
        if not texts:
            raise UsageError("There is no answer to choose from. Give training examples with answers, or a list")
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return cls(rows, end_id=tokenizer.eos_token_id)

    def allowed(self, row: int, ids: Tensor) -> list[int]:
        """The tokens that may follow ``ids``, which begin with the decoder's start token (transformers' signature).

        After the end of an answer it is the end token again, as transformers asks for finished rows too.
        """
        node = self._root
        for token in ids[1:].tolist():
            node = node.get(token, {})
        return list(node) or [self._end_id]
