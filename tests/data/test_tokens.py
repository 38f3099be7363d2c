from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import dept_vl
from dept_vl.data import tokens as module
from dept_vl.data.tokens import TokenTable, cache_folder, tokenize_examples
from dept_vl.types import Example, Frame, Target
from feature_extraction.errors import DiskFullError, InputDataError, UsageError

EOS = 1
FRAME = Frame(text_after=(EOS,), target_after=(EOS,))


def tokenize(examples: list[Example], tokenizer: Any, cache: Path | None = None, **changes: Any) -> TokenTable:
    settings = {
        "frame": FRAME,
        "prefix": "",
        "max_text_length": 20,
        "max_target_length": 5,
        "tokenizer_digest": "words",
    }
    return tokenize_examples(examples, tokenizer, cache=cache, **{**settings, **changes})


def equal(one: TokenTable, other: TokenTable) -> bool:
    arrays = [
        [*table.texts, *table.targets, table.target_weights, table.first_target, np.array([table.max_text_length])]
        for table in (one, other)
    ]
    return all(np.array_equal(left, right) and left.dtype == right.dtype for left, right in zip(*arrays, strict=True))


@pytest.fixture(scope="module")
def t5_mini() -> Any:
    return AutoTokenizer.from_pretrained(Path(dept_vl.__path__[0]) / "backbones" / "t5_mini")


@pytest.mark.parametrize("text", ["", "What is it?", "one </s> two</s>", "</s>", "a very long question " * 9])
def test_every_row_of_a_t5_tokenizer_ends_with_its_only_end_token(t5_mini: Any, text: str) -> None:
    table = tokenize([Example("q", text, (), targets=(Target(text, 1.0),))], t5_mini)
    for row, most in ((table.texts.row(0), 20), (table.targets.row(0), 5)):
        assert row[-1] == EOS
        assert (row == EOS).sum() == 1
        assert len(row) <= most


def test_short_texts_are_what_the_t5_tokenizer_itself_gives(t5_mini: Any) -> None:
    table = tokenize([Example("q", "What colour is it?", ())], t5_mini, prefix="vqa: ")
    assert table.texts.row(0).tolist() == t5_mini("vqa: What colour is it?").input_ids


def test_a_tokenizer_without_end_token_of_its_own_gives_rows_with_one(tokenizer: PreTrainedTokenizerFast) -> None:
    table = tokenize([Example("q", "w0 w1", (), targets=(Target("red", 1.0),))], tokenizer)
    assert table.texts.row(0).tolist() == [3, 4, EOS]
    assert tokenizer.decode(table.targets.row(0)) == "red </s>"


def test_texts_of_exactly_the_length_are_whole_and_longer_ones_cut_and_counted(
    tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    fits, long = Example("a", "w0 w1 w2", ()), Example("b", "w0 w1 w2 w3", (), targets=(Target("w1 w2", 1.0),))
    table = tokenize([fits, long, long], tokenizer, max_text_length=4, max_target_length=2)
    assert table.texts.row(0).tolist() == table.texts.row(1).tolist() == [3, 4, 5, EOS]
    assert table.targets.row(0).tolist() == [4, EOS]
    said = capsys.readouterr().err
    assert "2 of 3 texts are longer than task.max_text_length=4 tokens and are cut" in said
    assert "2 of 2 targets are longer than task.max_target_length=2 tokens and are cut" in said


def test_each_example_has_its_own_range_of_targets(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [
        Example("none", "w0", ()),
        Example("two", "w0", (), targets=(Target("red", 0.3), Target("blue", 0.9))),
        Example("one", "w0", (), targets=(Target("red", 1.0),)),
    ]
    table = tokenize(examples, tokenizer)
    assert len(table) == 3
    assert table.first_target.tolist() == [0, 0, 2, 3]
    assert table.target_weights.tolist() == [0.3, 0.9, 1.0]
    assert table.targets.row(0).tolist() == table.targets.row(2).tolist()


def test_no_examples_give_an_empty_table(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    assert len(tokenize([], tokenizer, tmp_path)) == 0
    assert len(tokenize([], tokenizer, tmp_path)) == 0


def test_texts_in_several_pieces_equal_texts_in_one(
    tokenizer: PreTrainedTokenizerFast, make_examples: Callable[..., list[Example]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(make_examples(50), tokenizer)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 7)
    assert equal(tokenize(make_examples(50), tokenizer), whole)


class TestCache:
    @pytest.fixture
    def examples(self, make_examples: Callable[..., list[Example]]) -> list[Example]:
        return make_examples(30)

    def test_a_second_call_gives_the_same_table_without_tokenizing(
        self,
        examples: list[Example],
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = tokenize(examples, tokenizer, tmp_path / "new")
        monkeypatch.delattr(module, "_tokenize")
        assert equal(tokenize(examples, tokenizer, tmp_path / "new"), first)

    def test_everything_that_changes_the_tokens_changes_the_file(
        self, examples: list[Example], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        first, *rest = examples
        tokenize(examples, tokenizer, tmp_path)
        tokenize(examples, tokenizer, tmp_path, prefix="w0 ")
        tokenize(examples, tokenizer, tmp_path, max_text_length=19)
        tokenize(examples, tokenizer, tmp_path, max_target_length=4)
        tokenize(examples, tokenizer, tmp_path, tokenizer_digest="other")
        tokenize([replace(first, text="w9"), *rest], tokenizer, tmp_path)
        tokenize([replace(first, targets=(Target("red", 0.9), Target("blue", 0.3))), *rest], tokenizer, tmp_path)
        tokenize([replace(first, targets=(Target("red", 0.6), Target("blue w1", 0.3))), *rest], tokenizer, tmp_path)
        tokenize(examples[::-1], tokenizer, tmp_path)
        assert len(list(tmp_path.iterdir())) == 9

    def test_any_damage_is_found_said_and_mended(
        self,
        examples: list[Example],
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        first = tokenize(examples, tokenizer, tmp_path)
        (path,) = tmp_path.iterdir()
        whole = path.read_bytes()
        damaged = [b"", b"text", whole[:-1], whole[: len(whole) // 2]]
        for place in range(0, len(whole), 97):
            flipped = bytearray(whole)
            flipped[place] ^= 1
            damaged.append(bytes(flipped))
        for data in damaged:
            path.write_bytes(data)
            capsys.readouterr()
            assert equal(tokenize(examples, tokenizer, tmp_path), first)
            assert f"The token cache {path} is damaged (" in (said := capsys.readouterr().err)
            assert "); tokenising again" in said
            assert path.read_bytes() == whole

    def test_the_file_of_other_examples_is_not_taken(
        self,
        examples: list[Example],
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        first = tokenize(examples, tokenizer, tmp_path)
        (path,) = tmp_path.iterdir()
        tokenize(examples[1:], tokenizer, tmp_path)
        (other,) = set(tmp_path.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
        assert equal(tokenize(examples, tokenizer, tmp_path), first)
        assert "its contents are not those that were written under this name" in capsys.readouterr().err

    def test_a_cache_that_cannot_be_written_is_done_without(
        self,
        examples: list[Example],
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "file").touch()
        assert len(tokenize(examples, tokenizer, tmp_path / "file")) == 30
        assert "could not be written" in capsys.readouterr().err

        def full(path: Path, data: bytes) -> str:
            raise DiskFullError(28, "Disk full")

        monkeypatch.setattr(module, "write_durably", full)
        assert len(tokenize(examples, tokenizer, tmp_path)) == 30
        said = capsys.readouterr().err
        assert "could not be written ([Errno 28] Disk full); going on without" in said
        assert "DEPT_VL_CACHE names its folder" in said

    def test_the_folder_is_that_of_the_environment_or_under_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEPT_VL_CACHE", "/somewhere")
        assert cache_folder() == Path("/somewhere")
        monkeypatch.delenv("DEPT_VL_CACHE")
        assert cache_folder() == Path.home() / ".cache" / "dept_vl"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_refused(tokenizer: PreTrainedTokenizerFast, weight: float) -> None:
    example = Example("q7", "w0", (), targets=(Target("red", weight),))
    with pytest.raises(InputDataError) as caught:
        tokenize([example], tokenizer)
    assert str(caught.value) == (
        f"1 target weights are not finite numbers of at least 0; first: {weight!r} of 'red' in example 'q7'. "
        "Correct the annotations, or the task that reads them"
    )


@pytest.mark.parametrize(("name", "what"), [("max_text_length", "text"), ("max_target_length", "target")])
def test_a_frame_as_long_as_the_whole_is_refused(tokenizer: PreTrainedTokenizerFast, name: str, what: str) -> None:
    frame = Frame(text_before=(4,), text_after=(5, 6), target_before=(4,), target_after=(5, 6))
    with pytest.raises(UsageError) as caught:
        tokenize([], tokenizer, frame=frame, **{name: 3})
    assert str(caught.value) == (
        f"task.{name} is 3, but 3 of these tokens are the backbone's own (what it begins and ends with, and task.cue). "
        f"Raise task.{name} to more than 3"
    )


def test_a_text_that_is_cut_keeps_its_frame(tokenizer: PreTrainedTokenizerFast) -> None:
    frame = Frame(text_before=(7,), text_after=(8, 9), target_before=(5,), target_after=(EOS,), target_prefix="dog ")
    example = Example("q", "red blue green yes no", (), targets=(Target("two three", 1.0),))
    table = tokenize([example], tokenizer, frame=frame, max_text_length=5, max_target_length=4)
    red, blue, dog, two = tokenizer.convert_tokens_to_ids(["red", "blue", "dog", "two"])
    assert table.texts.row(0).tolist() == [7, red, blue, 8, 9]
    assert table.targets.row(0).tolist() == [5, dog, two, EOS]
