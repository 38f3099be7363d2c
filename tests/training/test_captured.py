"""What is recorded, what is replayed, and what is said where nothing can be. Steps as a whole are in test_step.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from dept_vl.model.engine.graphs import Recorder, Work
from dept_vl.training import captured
from dept_vl.training.captured import MOST_SHAPES, Recordings, Touched, recorder_for
from dept_vl.types import Batch

MakeBatch = Callable[..., Batch]


@dataclass
class Machine:
    """Work that notes how it was called; ``record`` makes replays that add up the calls."""

    closed: Tensor = field(default_factory=lambda: torch.zeros(2))
    kept: Tensor = field(default_factory=lambda: torch.zeros(1))
    seen: list[Batch] = field(default_factory=list)  # by the gradients, replayed or not
    values: list[Tensor] = field(default_factory=list)  # of their texts
    updates: list[tuple[Touched, bool]] = field(default_factory=list)  # and whether anything could change
    recorded: int = 0
    replays: int = 0
    failures: int = 0  # of recordings to come

    def recordings(self, *, record: Recorder | None, talks: bool = True) -> Recordings:
        return Recordings(self.gradients, self.update, closed=self.closed, kept=[self.kept], record=record, talks=talks)

    def gradients(self, batch: Batch) -> Touched:
        self.seen.append(batch)
        self.values.append(batch.text_ids.clone())
        self.kept += 1
        return frozenset({0, 2})

    def update(self, touched: Touched) -> None:
        self.updates.append((touched, bool(self.closed.isfinite().all())))

    def record(self, work: Work) -> Work:
        if self.failures:
            self.failures -= 1
            work()
            try:
                raise RuntimeError("a host read\nand where")
            finally:
                raise RuntimeError("the recording was ended by an error before")
        work()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            work()

        return replay


def step(recordings: Recordings, *batches: Batch) -> None:
    recordings.prepare(batches)
    for batch in batches:
        recordings.update(recordings.gradients(batch))


def test_each_shape_is_recorded_once_and_replayed_on_the_same_memory_with_what_the_batch_holds(
    make_batch: MakeBatch,
) -> None:
    machine = Machine()
    recordings = machine.recordings(record=machine.record)
    for seed, lengths in enumerate([(5, 3), (5, 3), (4, 4), (5, 2), (4, 4)]):
        batch = make_batch(lengths, seed=seed)
        step(recordings, batch)
        assert torch.equal(machine.values[-1], batch.text_ids)
    assert machine.recorded == 2 + 1  # and the update
    assert machine.replays == 2 * 5
    addresses = {(len(batch.text_ids[0]), batch.text_ids.data_ptr()) for batch in machine.seen}
    assert len(addresses) == 2
    # What has the same shape is shared by recordings, as they run one after the other.
    assert len({batch.visual_tokens.data_ptr() for batch in machine.seen}) == 1


def test_tasks_and_types_of_numbers_are_shapes_of_their_own(make_batch: MakeBatch) -> None:
    machine = Machine()
    recordings = machine.recordings(record=machine.record)
    batch = make_batch((5, 3))
    recordings.prepare([batch, replace(batch, task="caption"), replace(batch, boxes=batch.boxes.double()), batch])
    assert machine.recorded == 3


def test_a_recording_keeps_what_only_a_step_may_change(make_batch: MakeBatch) -> None:
    machine = Machine()
    machine.closed.copy_(torch.tensor([3.0, 4.0]))
    recordings = machine.recordings(record=machine.record)
    recordings.prepare([make_batch((5, 3))])
    assert machine.kept == 0
    recordings.update(recordings.gradients(make_batch((5, 3))))
    assert machine.kept == 1
    assert machine.updates == [(frozenset({0, 2}), False), (frozenset({0, 2}), True)]
    assert machine.closed.tolist() == [3.0, 4.0]


def test_an_update_is_recorded_for_each_set_of_parameters() -> None:
    machine = Machine()
    recordings = machine.recordings(record=machine.record)
    for touched in ({0}, {1}, {0}, {0, 1}):
        recordings.update(frozenset(touched))
    assert machine.recorded == 3
    assert [touched for touched, changes in machine.updates if changes] == [{0}, {1}, {0}, {0, 1}]


@pytest.mark.parametrize("talks", [True, False])
def test_past_the_most_shapes_batches_are_not_recorded_which_is_said_once(
    make_batch: MakeBatch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talks: bool
) -> None:
    monkeypatch.setattr(captured, "MOST_SHAPES", 2)
    machine = Machine()
    recordings = machine.recordings(record=machine.record, talks=talks)
    for length in (2, 3, 4, 5, 2, 5):
        step(recordings, make_batch((length, 1)))
    assert machine.recorded == 2 + 1
    assert machine.replays == 6 + 3
    said = (
        "2 shapes of batches are recorded as CUDA graphs; others are trained on without, in slower steps. "
        "A larger data.bucket_width makes fewer shapes\n"
    )
    assert capsys.readouterr().err == (said if talks else "")
    assert MOST_SHAPES == 32


@pytest.mark.parametrize("talks", [True, False])
def test_a_recording_that_fails_is_said_once_and_all_goes_on_without(
    make_batch: MakeBatch, capsys: pytest.CaptureFixture[str], talks: bool
) -> None:
    machine = Machine()
    recordings = machine.recordings(record=machine.record, talks=talks)
    step(recordings, make_batch((5, 3)))
    machine.failures = 2
    before = machine.replays
    for length in (4, 3, 5):  # the last was recorded, but its random numbers are not to be trusted any more
        batch = make_batch((length, 3))
        step(recordings, batch)
        assert machine.seen[-1] is batch
    assert machine.failures == 1  # it was not tried again
    assert machine.replays == before
    assert machine.kept == 1 + 3
    said = "Training goes on without CUDA graphs, in slower steps, as one cannot be recorded: a host read\n"
    assert capsys.readouterr().err == (said if talks else "")


def test_an_update_that_cannot_be_recorded_is_made_all_the_same(
    make_batch: MakeBatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine()
    recordings = machine.recordings(record=machine.record)
    recordings.prepare([make_batch((5, 3))])
    machine.failures = 1
    machine.closed.fill_(1)
    recordings.update(frozenset({0}))
    assert [changes for _, changes in machine.updates] == [False, True]
    assert machine.closed.tolist() == [1, 1]
    assert "as one cannot be recorded: a host read\n" in capsys.readouterr().err


def test_a_failure_without_a_message_is_said_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    def record(work: Work) -> Work:
        raise RuntimeError

    Machine().recordings(record=record).update(frozenset())
    assert capsys.readouterr().err.endswith("as one cannot be recorded: RuntimeError\n")


def test_other_errors_are_not_hidden(make_batch: MakeBatch) -> None:
    def record(work: Work) -> Work:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        Machine().recordings(record=record).prepare([make_batch((5, 3))])


def test_without_a_recorder_the_work_is_done_as_it_comes(make_batch: MakeBatch) -> None:
    machine = Machine()
    batch = make_batch((5, 3))
    step(machine.recordings(record=None), batch, batch)
    assert all(seen is batch for seen in machine.seen)
    assert machine.updates == [(frozenset({0, 2}), True)] * 2


def test_there_are_graphs_on_a_gpu_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert recorder_for(torch.device("cpu"), checkpointed=False) is None
    assert recorder_for(torch.device("cpu"), checkpointed=True) is None
    record = recorder_for(torch.device("cuda"), checkpointed=True)
    machine = Machine()
    recordings = machine.recordings(record=record)
    recordings.update(frozenset({0}))
    assert machine.updates == [(frozenset({0}), True)]
    assert capsys.readouterr().err == (
        "Training goes on without CUDA graphs, in slower steps, as one cannot be recorded: "
        "training.checkpoint_activations reads the state of the random generator\n"
    )


@pytest.mark.gpu
def test_after_a_graph_that_failed_a_gpu_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    device = torch.device("cuda")
    value = torch.ones(1000, device=device)

    def update(touched: Touched) -> None:
        value.add_(torch.nn.functional.dropout(value).sum().item())

    closed = torch.zeros(1, device=device)
    recordings = Recordings(
        lambda batch: frozenset(),
        update,
        closed=closed,
        kept=[],
        record=recorder_for(device, checkpointed=False),
        talks=True,
    )
    found = []
    for _ in range(2):
        value.fill_(1)
        recordings.update(frozenset())
        value.fill_(1)
        torch.manual_seed(3)
        recordings.update(frozenset())
        found.append(value.clone())
    assert torch.equal(*found)
    assert capsys.readouterr().err.count("Training goes on without CUDA graphs") == 1
