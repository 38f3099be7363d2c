"""Greedy and beam search on the lean layers against the library's generate, token for token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dept_vl.model.answer_trie import AnswerTrie
from dept_vl.model.backbone import load_backbone
from dept_vl.model.engine import decoding, searches
from dept_vl.model.engine.decoding import beam_search, greedy
from dept_vl.model.engine.graphs import Work
from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.model.families import EncoderDecoder
from dept_vl.settings import BackboneSettings

MakePair = Callable[..., Any]
MakeCases = Callable[[int], Iterator[tuple[int, "Case"]]]
END = 1

pytestmark = pytest.mark.usefixtures("exact_norms")


class Case(NamedTuple):
    """What a search is given."""

    pair: Any
    states: Tensor
    mask: Tensor
    max_length: int

    def ours(self, num_beams: int, **options: Any) -> Tensor:
        if num_beams == 1:
            return greedy(self.pair.lean, self.states, self.mask, max_length=self.max_length, **options)
        options |= {"max_length": self.max_length, "num_beams": num_beams}
        return beam_search(self.pair.lean, self.states, self.mask, **options)

    def wanted(self, num_beams: int, **options: Any) -> Tensor:
        options |= {"max_length": self.max_length, "num_beams": num_beams}
        return self.pair.generate(self.states, self.mask, **options)


@pytest.fixture
def make_cases(make_pair: MakePair) -> MakeCases:
    """So many random cases: 1 to 5 rows of 1 to 9 positions with padding anywhere, answers of 1 to 20 tokens."""

    def make(count: int) -> Iterator[tuple[int, Case]]:
        for seed in range(count):
            model = seed % 24
            pair = make_pair(
                model,
                gated=bool(model % 2),
                tied=bool(model // 2 % 2),
                sharpness=(0.15, 0.4, 1.0)[model // 4 % 3],
                ending=(1.0, 2.5, 5.0)[model // 8],
            )
            generator = torch.Generator().manual_seed(seed)
            rows, positions, longest = (int(torch.randint(1, most + 1, (), generator=generator)) for most in (5, 9, 20))
            states = torch.randn(rows, positions, 16, generator=generator, dtype=torch.float64)
            mask = torch.rand(rows, positions, generator=generator) > 0.3
            mask[torch.arange(rows), torch.randint(positions, (rows,), generator=generator)] = True
            yield seed, Case(pair, states, mask, longest)

    return make


def random_trie(seed: int) -> AnswerTrie:
    """From 1 to 12 answers of 1 to 4 tokens; some begin with others."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 13, (), generator=generator))
    lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
    rows = [torch.randint(2, 8, (length,), generator=generator).tolist() for length in lengths]
    return AnswerTrie({str(row): row for row in rows}, end_id=END)


def ends(ids: Tensor) -> list[int]:
    """How many tokens each answer has, end token included; 0 of one that was cut."""
    return [row.index(END) + 1 if END in row else 0 for row in ids.tolist()]


@pytest.mark.parametrize(("num_beams", "count"), [(1, 200), (2, 100), (5, 100)])
def test_answers_are_the_librarys(num_beams: int, count: int, make_cases: MakeCases) -> None:
    lengths = []
    for seed, case in make_cases(count):
        wanted = case.wanted(num_beams)
        assert case.ours(num_beams).tolist() == wanted.tolist(), f"case {seed}"
        lengths.append(ends(wanted))
    # Answers end early and late and not at all, also in one batch.
    assert {0, 1, 2, 3, 4, 5} <= {length for batch in lengths for length in batch}
    assert sum(len(set(batch)) > 1 for batch in lengths) > count / 6


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_answers_of_tries_are_the_librarys(num_beams: int, make_cases: MakeCases) -> None:
    for seed, case in make_cases(24):
        tries = [random_trie(10 * seed + row) for row in range(len(case.mask))]  # each row has its own

        def allowed(row: int, ids: Tensor, tries: list[AnswerTrie] = tries) -> list[int]:
            return tries[row].allowed(row, ids)

        ids = case.ours(num_beams, allowed=allowed)
        assert ids.tolist() == case.wanted(num_beams, allowed=allowed).tolist(), f"case {seed}"
        for row, trie in zip(ids.tolist(), tries, strict=True):
            if case.max_length >= trie.longest:
                trie.text(row)  # is one of the answers


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_answer_is_the_same_alone_and_in_a_batch(num_beams: int, make_cases: MakeCases) -> None:
    for seed, case in make_cases(24):
        for row, together in enumerate(case.ours(num_beams).tolist()):
            one = case._replace(states=case.states[row, None], mask=case.mask[row, None])
            (alone,) = one.ours(num_beams).tolist()
            assert together[: len(alone)] == alone, f"case {seed}"
            assert len(together) == len(alone) or alone[-1] == END


@pytest.mark.parametrize("num_beams", [1, 3])
def test_recorded_searches_give_the_same_answers(
    num_beams: int, make_cases: MakeCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: the same work on the same memory, at every call anew, and never left early."""
    recorded = 0

    def record(work: Work) -> Work:
        nonlocal recorded
        recorded += 1
        return work

    monkeypatch.setattr(decoding, "graph_recorder", lambda device, warm_ups: record)
    monkeypatch.setattr(decoding, "_RECORDED", {})
    for seed, case in make_cases(16):
        for times in range(3):  # as it is, recorded, replayed
            other = case._replace(states=case.states.roll(times, dims=2), mask=case.mask.roll(times, dims=0))
            assert other.ours(num_beams).tolist() == other.wanted(num_beams).tolist(), f"case {seed}"
        assert recorded == seed + 1


def test_a_recording_is_not_for_moved_weights_nor_for_dropout(
    make_cases: MakeCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []

    def record(work: Work) -> Work:
        recorded.append(work)
        return work

    monkeypatch.setattr(decoding, "graph_recorder", lambda device, warm_ups: record)
    monkeypatch.setattr(decoding, "_RECORDED", {})
    ((_, case),) = make_cases(1)
    lean = copy.deepcopy(case.pair.lean)
    case = case._replace(pair=case.pair._replace(lean=lean))

    def count_after_two() -> int:
        case.ours(1), case.ours(1)
        return len(recorded)

    assert count_after_two() == 1
    assert count_after_two() == 1
    lean.cross.data = lean.cross.data.clone()
    assert count_after_two() == 2
    lean.train()
    assert count_after_two() == 3


@pytest.mark.parametrize("search", [searches.greedy_search, partial(searches.beam_search, num_beams=3)])
def test_a_search_that_goes_to_the_end_never_looks_at_what_it_finds(
    search: Callable[..., searches.Found],
    make_cases: MakeCases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On tensors without contents, of which nothing can be read: so it can be recorded."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know this device
    ((_, case),) = make_cases(1)
    lean = copy.deepcopy(case.pair.lean).to("meta")
    run = partial(search, lean, case.states.to("meta"), case.mask.to("meta"), max_length=6, allowed=None)
    assert run(early=False).ids.shape == (len(case.mask), 6)
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        run(early=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_search_stops_when_nothing_can_change(
    num_beams: int, make_cases: MakeCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, shapes = 0, set()
    decode_one = LeanT5.decode_one

    def note(lean: LeanT5, ids: Tensor, position: Tensor, cache: Tensor, cross: Tensor, mask: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        shapes.add((cross.shape[2], len(mask)))
        return decode_one(lean, ids, position, cache, cross, mask)

    monkeypatch.setattr(LeanT5, "decode_one", note)
    early = 0
    for _, case in make_cases(24):
        steps = 0
        shapes.clear()
        longest = case.ours(num_beams).shape[1]
        assert shapes == {(len(case.mask), len(case.mask))}  # beams share what they attend to
        assert longest <= steps <= case.max_length
        assert num_beams > 1 or steps == longest
        early += steps < case.max_length
    assert early > 0


@pytest.mark.parametrize("num_beams", [1, 5])
def test_the_embedded_model_answers_as_on_the_librarys_layers(num_beams: int) -> None:
    mini = load_backbone(BackboneSettings())
    t5: Any = mini.model.eval()
    lean = LeanT5(copy.deepcopy(t5), alignment=8).eval()
    texts = ["what is the color of this shape?", "a man rides a horse on the beach", "no"]
    rows = mini.tokenizer(texts, padding=True, return_tensors="pt")
    mask = rows["attention_mask"].bool()
    with torch.no_grad():
        states = t5.encoder(input_ids=rows["input_ids"], attention_mask=mask.long()).last_hidden_state
        more = lean.encode(t5.shared(rows["input_ids"]), mask)
    wanted = EncoderDecoder().generate(t5, states, mask, max_length=12, num_beams=num_beams, allowed=None)
    ours = greedy if num_beams == 1 else partial(beam_search, num_beams=num_beams)
    assert ours(lean, *more, max_length=12).tolist() == wanted.tolist()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_room_beyond_the_longest_answer_changes_nothing(
    num_beams: int, make_cases: MakeCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of a GPU want an alignment of keys as of encoder positions."""
    rooms = set()
    decode_one = LeanT5.decode_one

    def note(lean: LeanT5, ids: Tensor, position: Tensor, cache: Tensor, *encoder: Tensor) -> Tensor:
        rooms.add(cache.shape[4])
        return decode_one(lean, ids, position, cache, *encoder)

    for _, case in make_cases(8):
        wanted = case.ours(num_beams).tolist()
        with monkeypatch.context() as patch:
            patch.setattr(case.pair.lean, "alignment", 8)
            patch.setattr(LeanT5, "decode_one", note)
            assert case.ours(num_beams).tolist() == wanted
    assert rooms == {8, 16, 24}


def test_autocast_does_not_change_what_is_found(make_cases: MakeCases) -> None:
    for _, case in make_cases(8):
        wanted = case.ours(1), case.ours(3)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, (case.ours(1), case.ours(3)), wanted))
