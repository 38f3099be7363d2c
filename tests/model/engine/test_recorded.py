"""What is recorded, replayed and forgotten, and what is said where nothing can be recorded."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dept_vl.model.engine import decoding
from dept_vl.model.engine.decoding import beam_search, greedy
from dept_vl.model.engine.graphs import Work, graph_recorder
from dept_vl.model.engine.recorded import RecordedSearches
from dept_vl.model.engine.searches import Found


class Machine:
    """A search that notes how it was called and finds the sums of its inputs; ``record`` replays it.

    As a graph does, it puts what it finds for one shape always in the same place.
    """

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.calls: list[tuple[bool, int, int]] = []  # whether to leave early, and where the inputs are
        self.found: dict[object, Found] = {}
        self.recorded = 0
        self.replayed = 0

    @torch.inference_mode(mode=False)
    def search(self, states: Tensor, mask: Tensor, *, early: bool) -> Found:
        self.calls.append((early, states.data_ptr(), mask.data_ptr()))
        new = Found(states.sum(dim=2).long(), mask.sum(dim=1))
        if early:
            return new
        found = self.found.setdefault((states.shape, states.dtype), new)
        for place, tensor in zip(found, new, strict=True):
            place.copy_(tensor)
        return found

    def record(self, work: Work) -> Work:
        work()
        if self.fails:
            try:
                raise RuntimeError("a host read\nand where")
            finally:
                raise RuntimeError("the recording was ended by an error before")
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def run(
    searches: RecordedSearches, machine: Machine, *, length: int = 3, kind: object = "greedy", seed: int = 0
) -> None:
    """One search, of which the result must be right."""
    states = torch.randint(9, (2, length, 4), generator=torch.Generator().manual_seed(seed)).float()
    mask = states[:, :, 0] > 4
    found = searches(machine.search, states, mask, kind=kind)
    assert torch.equal(found.ids, states.sum(dim=2).long())
    assert torch.equal(found.lengths, mask.sum(dim=1))


def test_a_shape_is_searched_once_as_it_is_then_recorded_then_replayed_on_the_same_memory() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record)
    for seed in range(4):
        run(searches, machine, seed=seed)
    assert [early for early, *_ in machine.calls] == [True, False, False, False, False]
    assert (machine.recorded, machine.replayed) == (1, 3)
    assert len({tuple(places) for _, *places in machine.calls[1:]}) == 1


def test_a_result_outlives_the_next_replay() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record)
    mask = torch.ones(2, 3, dtype=torch.bool)
    found = [searches(machine.search, torch.full((2, 3, 4), value), mask, kind=None) for value in (1.0, 2.0, 3.0)]
    assert [int(one.ids[0, 0]) for one in found] == [4, 8, 12]


def test_kinds_shapes_and_types_of_numbers_are_recorded_apart() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record)
    for _ in range(2):
        run(searches, machine)
        run(searches, machine, length=5)
        run(searches, machine, kind="beams")
        searches(machine.search, torch.ones(2, 3, 4, dtype=torch.float64), torch.ones(2, 3).bool(), kind="greedy")
    assert machine.recorded == 4


def test_recordings_share_the_memory_of_inputs() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record)
    for length in (5, 3, 4, 5, 3):
        run(searches, machine, length=length)
        run(searches, machine, length=length)
    assert len({tuple(places) for early, *places in machine.calls if not early}) == 1


def test_a_larger_input_leaves_earlier_recordings_as_they_are() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record)
    for seed, length in enumerate((3, 3, 5, 5, 3, 5)):
        run(searches, machine, length=length, seed=seed)
    assert machine.replayed == 4


def test_the_shape_that_was_not_asked_for_the_longest_is_forgotten() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record, most=2)
    for length in (3, 3, 4, 4, 3, 5, 5):  # with 5, 4 is forgotten
        run(searches, machine, length=length)
    assert machine.recorded == 3
    run(searches, machine, length=3)
    assert machine.recorded == 3
    run(searches, machine, length=4)
    assert machine.calls[-1][0]  # as if it were new
    run(searches, machine, length=4)
    assert machine.recorded == 4


def test_without_a_recorder_all_searches_are_run_as_they_are() -> None:
    machine = Machine()
    searches = RecordedSearches(None)
    for _ in range(3):
        run(searches, machine)
    assert [early for early, *_ in machine.calls] == [True] * 3


def test_where_nothing_can_be_recorded_searches_go_on_as_they_are_which_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = Machine(fails=True)
    searches = RecordedSearches(machine.record)
    for length in (3, 3, 3, 4, 4):
        run(searches, machine, length=length)
    assert [early for early, *_ in machine.calls] == [True, False, True, True, True, True]
    assert capsys.readouterr().err == (
        "Answers are found without CUDA graphs, more slowly, as one cannot be recorded: a host read\n"
    )


def test_a_recording_made_in_inference_mode_serves_outside_of_it() -> None:
    machine = Machine()
    searches = RecordedSearches(machine.record)
    with torch.inference_mode():
        run(searches, machine)
        run(searches, machine)
    run(searches, machine)
    assert machine.replayed == 2


def test_there_are_no_recordings_on_a_cpu() -> None:
    assert graph_recorder(torch.device("cpu"), warm_ups=1) is None


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("num_beams", [1, 3])
def test_graphs_give_the_librarys_answers(num_beams: int, make_pair: Callable[..., Any]) -> None:
    made = make_pair(1)
    pair = type(made)(copy.deepcopy(made.reference).cuda(), copy.deepcopy(made.lean).cuda())
    ours = greedy if num_beams == 1 else partial(beam_search, num_beams=num_beams)
    for seed in range(4):
        for rows, positions in ((3, 8), (5, 8), (3, 16)):
            generator = torch.Generator().manual_seed(seed)
            states = torch.randn(rows, positions, 16, generator=generator, dtype=torch.float64).cuda()
            mask = (torch.arange(positions) < 4 + torch.arange(rows)[:, None]).cuda()
            wanted = pair.generate(states, mask, max_length=8, num_beams=num_beams)
            assert ours(pair.lean, states, mask, max_length=8).tolist() == wanted.tolist()
    (recorded,) = decoding._RECORDED[pair.lean].values()
    assert [recording is not None for recording in recorded._by_shape.values()] == [True] * 3


@pytest.mark.gpu
def test_graphs_do_not_keep_a_model(make_pair: Callable[..., Any]) -> None:
    lean = copy.deepcopy(make_pair(1).lean).cuda()
    states, mask = torch.randn(2, 8, 16, dtype=torch.float64).cuda(), torch.ones(2, 8, dtype=torch.bool).cuda()
    for _ in range(3):
        greedy(lean, states, mask, max_length=4)
    dead = weakref.ref(lean)
    del lean
    gc.collect()
    assert dead() is None
