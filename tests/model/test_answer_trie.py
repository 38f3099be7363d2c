"""What may come next in an answer of the vocabulary, against all answers gone through one by one."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dept_vl.model.answer_trie import AnswerTrie
from dept_vl.types import Frame
from feature_extraction.errors import UsageError

END = 1
ANSWERS = {"a": [5], "a b": [5, 6], "a c": [5, 7], "d": [8], "d b a": [8, 6, 5]}


@pytest.fixture
def trie() -> AnswerTrie:
    return AnswerTrie(ANSWERS, end_id=END)


def after(trie: AnswerTrie, *tokens: int) -> set[int]:
    allowed = trie.allowed(0, torch.tensor([0, *tokens]))  # behind the start token
    assert len(set(allowed)) == len(allowed)
    return set(allowed)


def test_behind_every_beginning_come_the_tokens_of_the_answers_that_begin_so(trie: AnswerTrie) -> None:
    rows = [[*row, END] for row in ANSWERS.values()]
    for length in range(4):
        for tokens in product([5, 6, 7, 8], repeat=length):
            expected = {row[length] for row in rows if row[:length] == list(tokens) and len(row) > length}
            assert after(trie, *tokens) == (expected or {END})


def test_an_answer_may_end_where_a_longer_one_goes_on(trie: AnswerTrie) -> None:
    assert after(trie, 5) == {6, 7, END}


def test_after_the_end_comes_the_end(trie: AnswerTrie) -> None:
    assert after(trie, 5, END) == after(trie, 5, END, END) == after(trie, 5, END, 0, 0) == {END}


def test_the_row_of_the_batch_does_not_matter(trie: AnswerTrie) -> None:
    ids = torch.tensor([0, 8])
    assert trie.allowed(0, ids) == trie.allowed(7, ids)


def test_the_longest_answer_counts_its_end_token(trie: AnswerTrie) -> None:
    assert trie.longest == 4
    assert AnswerTrie({"": []}, end_id=END).longest == 1


def test_an_answer_may_be_nothing() -> None:
    trie = AnswerTrie({"": [], "a": [5]}, end_id=END)
    assert after(trie) == {5, END}
    assert trie.text([END, 0]) == ""


def test_the_text_of_an_answer_is_that_of_its_tokens_up_to_the_end(trie: AnswerTrie) -> None:
    for text, row in ANSWERS.items():
        assert trie.text([*row, END]) == trie.text([*row, END, 0, 0]) == text


def test_of_answers_with_the_same_tokens_the_first_is_given() -> None:
    assert AnswerTrie({"a": [5], "A": [5]}, end_id=END).text([5, END]) == "a"


def test_texts_are_tokenised_without_an_end_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    red, dog = tokenizer.convert_tokens_to_ids(["red", "dog"])
    trie = AnswerTrie.from_texts(["red dog", "red </s>"], tokenizer, frame=Frame())
    assert after(trie) == {red}
    assert after(trie, red) == {dog, END}
    assert trie.text([red, dog, END]) == "red dog"
    assert trie.text([red, END]) == "red </s>"


def test_no_texts_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"^There is no answer to choose from\. Give training examples with answers"):
        AnswerTrie.from_texts([], tokenizer, frame=Frame())
