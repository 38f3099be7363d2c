"""All texts and targets of a split as token ids, tokenised once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dept_vl.command_line import say
from dept_vl.types import Example, Frame
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError, UsageError

if TYPE_CHECKING:  # a second of import time that a reading process does not need
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Arrays = dict[str, np.ndarray]
TokenIds = Int32[np.ndarray, " _"]  # any number

LAYOUT = "dept_vl tokens 2"  # of the cache files; another one wherever equal input gives another file
TEXTS_AT_ONCE = 16_384  # in one call of the tokenizer: enough to keep its threads busy, in little memory


class Ragged(NamedTuple):
    """Rows of differing length, laid end to end: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: TokenIds
    offsets: Int64[np.ndarray, " ends"]

    def row(self, index: int) -> TokenIds:
        """The token ids of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """Tokens in each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class TokenTable:
    """The texts of all examples and all their targets, each in the backbone's frame.

    The targets of example i are the rows ``first_target[i]`` up to, but without, ``first_target[i + 1]``.
    """

    texts: Ragged
    targets: Ragged
    target_weights: Float64[np.ndarray, " targets"]
    first_target: Int64[np.ndarray, " ends"]
    max_text_length: int  # tokens, with the frame's
    max_target_length: int
    frame: Frame

    def __len__(self) -> int:
        return len(self.first_target) - 1


def cache_folder() -> Path:
    """Where token tables are kept: $DEPT_VL_CACHE, or ~/.cache/dept_vl."""
    return Path(os.environ.get("DEPT_VL_CACHE") or Path.home() / ".cache" / "dept_vl")


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    frame: Frame,
    prefix: str,
    max_text_length: int,
    max_target_length: int,
    tokenizer_digest: str,
    cache: Path | None,
) -> TokenTable:
    """Token ids of prefix + text and of every target, cut to their lengths; from the cache folder if they are there.

    Every row stands in the backbone's frame, which counts in its length and is never cut: a T5's ends with </s>. The
    end token stands nowhere else, even if a text spells it out. A cache file that was damaged is made anew; one that
    cannot be written is done without.

    Raises:
        InputDataError: a target's weight is negative or not finite.
        UsageError: the frame alone is as long as a text or target may be.
    """
    _check_room(frame, max_text_length, max_target_length)
    _check_weights(examples)
    lengths = {"max_text_length": max_text_length, "max_target_length": max_target_length}
    key = _digest(examples, {"tokenizer": tokenizer_digest, "prefix": prefix, **frame._asdict(), **lengths})
    path = cache / f"tokens-{key}.safetensors" if cache is not None else None
    arrays = _read_cache(path) if path is not None else None
    if arrays is None:
        arrays = _tokenize(examples, tokenizer, prefix, frame, **lengths)
        if path is not None:
            _write_cache(path, arrays)
    return TokenTable(
        texts=Ragged(arrays["text_values"], arrays["text_offsets"]),
        targets=Ragged(arrays["target_values"], arrays["target_offsets"]),
        target_weights=arrays["target_weights"],
        first_target=arrays["first_target"],
        max_text_length=max_text_length,
        max_target_length=max_target_length,
        frame=frame,
    )


def _check_room(frame: Frame, max_text_length: int, max_target_length: int) -> None:
    around_text = len(frame.text_before) + len(frame.text_after)
    around_target = len(frame.target_before) + len(frame.target_after)
    for name, around, length in (
        ("task.max_text_length", around_text, max_text_length),
        ("task.max_target_length", around_target, max_target_length),
    ):
        if around >= length:
            raise UsageError(
                f"{name} is {length}, but {around} of these tokens are the backbone's own (what it begins and ends "
                f"with, and task.cue). Raise {name} to more than {around}"
            )


def _check_weights(examples: Sequence[Example]) -> None:
    wrong = [
        f"{target.weight!r} of {target.text!r} in example {example.example_id!r}"
        for example in examples
        for target in example.targets
        if not (math.isfinite(target.weight) and target.weight >= 0)
    ]
    if wrong:
        raise InputDataError(
            f"{len(wrong):,} target weights are not finite numbers of at least 0; first: {'; '.join(wrong[:20])}. "
            "Correct the annotations, or the task that reads them"
        )


def _digest(examples: Sequence[Example], settings: dict[str, object]) -> str:
    """SHA-256 over everything that the token table depends on."""
    digest = hashlib.sha256(f"{LAYOUT} {json.dumps(settings)}".encode())
    for some in _pieces(examples, TEXTS_AT_ONCE):
        # JSON keeps apart what plain joining would mix up, and writes floats exactly.
        digest.update(json.dumps([(example.text, example.targets) for example in some]).encode())
    return digest.hexdigest()


def _tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    prefix: str,
    frame: Frame,
    max_text_length: int,
    max_target_length: int,
) -> Arrays:
    targets = [target for example in examples for target in example.targets]
    text_rows = _rows(
        [prefix + example.text for example in examples],
        tokenizer,
        _around_text(frame),
        max_text_length,
        "texts",
        "task.max_text_length",
    )
    target_rows = _rows(
        [frame.target_prefix + target.text for target in targets],
        tokenizer,
        _Around(frame.target_before, frame.target_after, frame.target_after),
        max_target_length,
        "targets",
        "task.max_target_length",
    )
    return {
        "text_values": text_rows.values,
        "text_offsets": text_rows.offsets,
        "target_values": target_rows.values,
        "target_offsets": target_rows.offsets,
        "target_weights": np.array([target.weight for target in targets], dtype=np.float64),
        "first_target": _offsets([len(example.targets) for example in examples]),
    }


class _Around(NamedTuple):
    """What stands before and after each row, and which tokens end a text and stand nowhere inside."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    ends: tuple[int, ...]

    def row(self, tokens: Sequence[int], max_length: int) -> tuple[TokenIds, bool]:
        """The tokens in their frame, and whether some were left out for want of room."""
        plain = [token for token in tokens if token not in self.ends]
        room = max_length - len(self.before) - len(self.after)
        return np.array([*self.before, *plain[:room], *self.after], dtype=np.int32), len(plain) > room


def text_row(tokens: Sequence[int], frame: Frame, max_length: int) -> tuple[TokenIds, bool]:
    """The row that a text's tokens become in the backbone's frame, and whether it was cut."""
    return _around_text(frame).row(tokens, max_length)


def _around_text(frame: Frame) -> _Around:
    return _Around(frame.text_before, frame.text_after, frame.target_after)


def _rows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    around: _Around,
    max_length: int,
    what: str,
    setting: str,
) -> Ragged:
    """One row for each text; a text that occurs often, as answers do, is tokenised once."""
    unique = list(dict.fromkeys(texts))
    ids: dict[str, TokenIds] = {}
    cut: set[str] = set()
    for some in _pieces(unique, TEXTS_AT_ONCE):
        encoded = tokenizer(list(some), add_special_tokens=False, return_attention_mask=False, verbose=False)
        for text, row in zip(some, encoded["input_ids"], strict=True):
            ids[text], was_cut = around.row(row, max_length)
            if was_cut:
                cut.add(text)
    if cut:
        say(
            f"{sum(text in cut for text in texts):,} of {len(texts):,} {what} are longer than {setting}={max_length} "
            "tokens and are cut"
        )
    rows = [ids[text] for text in texts]
    return Ragged(np.concatenate([np.empty(0, np.int32), *rows]), _offsets([len(row) for row in rows]))


def _offsets(lengths: Sequence[int]) -> Int64[np.ndarray, " ends"]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _pieces(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _read_cache(path: Path) -> Arrays | None:
    """The arrays of a cache file, or None where there is none that can be trusted."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
            metadata = file.metadata() or {}
    except (OSError, ValueError, SafetensorError) as error:
        fault = str(error)
    else:
        if metadata == _metadata(path, arrays):
            return arrays
        fault = "its contents are not those that were written under this name"
    say(f"The token cache {path} is damaged ({fault}); tokenising again")
    return None


def _write_cache(path: Path, arrays: Arrays) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, save(arrays, metadata=_metadata(path, arrays)))
    except OSError as error:  # also DiskFullError: a run needs no cache
        say(f"The token cache {path} could not be written ({error}); going on without. DEPT_VL_CACHE names its folder")


def _metadata(path: Path, arrays: Arrays) -> dict[str, str]:
    """The file's own name and a checksum of its arrays, which safetensors does not have."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    # One key only: safetensors would write several in any order.
    return {"dept_vl": f"{path.name} {digest.hexdigest()}"}
