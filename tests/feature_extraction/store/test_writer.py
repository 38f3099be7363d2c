from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_extraction import FeatureStore, durable
from feature_extraction.errors import DamagedError, DiskFullError, IncompatibleError, InputDataError
from feature_extraction.store import writer as store_writer
from feature_extraction.store.claims import Claims, Process, this_process
from feature_extraction.store.layout import INDEX, MANIFEST, REJECTED, claim_name, record_name, shard_name
from feature_extraction.store.writer import StoreWriter

Contents = Callable[[Path], dict[str, bytes]]
LIMIT = 1000  # system calls of a run, at most


def see_no_damage(path: Path) -> None:
    """A reader sees the whole store or none, and never damage."""
    try:
        features = FeatureStore.open(path)
    except InputDataError:
        return
    features.verify()
    assert len(features) == 9


# --- creating and going on


def test_a_finished_store_has_these_files_and_no_others(store: Path) -> None:
    names = sorted(path.name for path in store.iterdir())
    assert names == [INDEX, MANIFEST, REJECTED, *map(shard_name, range(3))]


def test_a_new_store_is_not_resumed(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path / "a" / "b", small.manifest())
    assert (writer.resumed, writer.missing, writer.rejected) == (False, [0, 1, 2], [])
    assert [list(writer.rows(number)) for number in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [path.name for path in writer.path.iterdir()] == [MANIFEST]


def test_another_run_goes_on_after_the_finished_shards(
    tmp_path: Path, store: Path, small: Any, contents: Contents
) -> None:
    path = tmp_path / "other"
    small.write_shard(StoreWriter(path, small.manifest()), 1)
    writer = StoreWriter(path, small.manifest())
    assert (writer.resumed, writer.missing, writer.rejected) == (True, [0, 2], [small.REJECTED])
    small.write(path, writer=writer)
    assert contents(path) == contents(store)


def test_a_finished_store_is_not_touched_again(store: Path, small: Any) -> None:
    def ages() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in [store, *store.iterdir()]}

    before = ages()
    writer = StoreWriter(store, small.manifest())
    assert writer.missing == []
    writer.finish()
    writer.finish()
    assert ages() == before


def test_the_rejected_images_so_far_can_be_listed(tmp_path: Path, store: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path / "other", small.manifest())
    assert writer.list_rejected().read_bytes() == b""
    small.write_shard(writer, 1)
    assert writer.list_rejected() == tmp_path / "other" / REJECTED
    assert writer.list_rejected().read_bytes() == (store / REJECTED).read_bytes()


def test_a_folder_with_only_left_overs_is_taken(tmp_path: Path, small: Any) -> None:
    (tmp_path / f"{MANIFEST}.123.partial").write_bytes(b"half")
    assert StoreWriter(tmp_path, small.manifest()).missing == [0, 1, 2]


def test_a_folder_with_other_files_is_refused(tmp_path: Path, small: Any) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        InputDataError, match=r"no feature store and not empty: it has no manifest\.json, but thesis\.tex\. Give a new"
    ):
        StoreWriter(tmp_path, small.manifest())


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, small: Any) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(InputDataError, match=r"store is a file, not a folder\. Give a new folder as --output"):
        StoreWriter(tmp_path / "store", small.manifest())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"identity": {"weight_digest": "1" * 64}}, "weight_digest"),
        ({"identity": {"feature_width": 6}}, "feature_width"),
        ({"identity": {"layer": 3}}, "layer"),
        ({"ids": 9}, "images"),
        ({"other": "other"}, "image_ids_digest"),
        ({"shard_size": 5}, "shard_size"),
    ],
)
def test_a_store_of_something_else_is_refused_with_a_table(
    store: Path, small: Any, changes: dict[str, Any], field: str
) -> None:
    ids = [*small.IDS[: changes.pop("ids", 10)]]
    ids[-1] = changes.pop("other", ids[-1])
    identity = {**small.IDENTITY, **changes.pop("identity", {})}
    with pytest.raises(IncompatibleError, match=r"holds other features than this command would write") as failure:
        StoreWriter(store, small.manifest(ids, identity, **changes))
    heading, table, *rows, advice = str(failure.value).splitlines()
    assert table.split() == ["field", "expected", "got"]
    assert field in [row.split()[0] for row in rows]
    assert advice == "Give a new folder as --output, or the images and settings of the store"
    assert "  image_size" not in heading


def test_what_changes_no_feature_may_differ(store: Path, small: Any) -> None:
    moved = small.manifest(source="moved", workers=7, weights="moved/elsewhere.safetensors")
    assert StoreWriter(store, moved).missing == []


def test_a_folder_that_becomes_another_store_is_left_alone(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path / "store", small.manifest())
    (tmp_path / "store" / MANIFEST).unlink()
    StoreWriter(tmp_path / "store", small.manifest(identity={**small.IDENTITY, "layer": 3}))
    with pytest.raises(IncompatibleError, match="holds other features than this command would write"):
        small.write_shard(writer, 0)
    assert not (tmp_path / "store" / shard_name(0)).exists()


def test_the_first_of_two_that_create_a_store_at_once_wins(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process creates the store after this one has seen that there is none, before it looks for strangers."""
    path = tmp_path / "store"
    entries = store_writer._entries

    def slow(folder: Path) -> list[Path]:
        monkeypatch.undo()
        with StoreWriter(path, small.manifest(source="first")) as first:
            first.claim([0])
            return list(entries(folder))

    monkeypatch.setattr(store_writer, "_entries", slow)
    writer = StoreWriter(path, small.manifest(source="second"))
    assert not writer.resumed
    assert b'"first"' in (path / MANIFEST).read_bytes()


# --- the end


def test_a_store_with_missing_shards_is_not_finished(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path, small.manifest())
    small.write_shard(writer, 1)
    with pytest.raises(InputDataError, match=r"is not finished: 1 of 3 shards are done\. To go on, run again: python"):
        writer.finish()
    assert (tmp_path / record_name(1)).exists()
    assert not (tmp_path / INDEX).exists()


def test_a_shard_that_was_cut_off_meanwhile_is_seen_at_the_end(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path, small.manifest())
    for number in range(3):
        small.write_shard(writer, number)
    os.truncate(tmp_path / shard_name(1), 5)
    with pytest.raises(InputDataError, match="not finished: 2 of 3"):
        writer.finish()
    assert writer.missing == [1]


def test_shards_of_other_images_do_not_make_a_store(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path, small.manifest())
    for number in range(3):
        rows = writer.rows(number)
        writer.write(number, [f"{small.IDS[row]}!" for row in rows], small.images(rows), [])
    with pytest.raises(DamagedError, match=r"index\.jsonl is damaged: expected the 10 image ids of manifest\.json"):
        writer.finish()
    assert not (tmp_path / INDEX).exists()


def test_left_overs_of_stopped_processes_are_removed_at_the_end(store: Path, small: Any, contents: Contents) -> None:
    whole = contents(store)
    lines = whole[INDEX].splitlines(keepends=True)
    (store / INDEX).write_bytes(lines[0] + lines[1] + lines[2][:30])
    for name in (f"{shard_name(2)}.12.partial", "clock.34.partial", record_name(0), claim_name(1), claim_name(77)):
        (store / name).write_bytes(b"half")
    writer = StoreWriter(store, small.manifest())
    assert writer.missing == [2]
    small.write(store, writer=writer)
    assert contents(store) == whole


@pytest.mark.parametrize("harm", ["delete", "truncate", "index line", "index", "cut off index"])
def test_writing_again_repairs_the_store_to_the_same_bytes(
    store: Path, small: Any, contents: Contents, harm: str
) -> None:
    whole = contents(store)
    if harm == "delete":
        (store / shard_name(1)).unlink()
    elif harm == "truncate":
        os.truncate(store / shard_name(1), 50)
    elif harm == "index line":
        (store / INDEX).write_bytes(whole[INDEX].replace(b"image 5", b"image X"))
    elif harm == "cut off index":
        os.truncate(store / INDEX, whole[INDEX].index(b"\n") + 1)
    else:
        (store / INDEX).unlink()
    writer = StoreWriter(store, small.manifest())
    assert writer.missing == {"index": [0, 1, 2], "cut off index": [1, 2]}.get(harm, [1])
    small.write(store, writer=writer)
    assert contents(store) == whole
    FeatureStore.open(store).verify()


# --- stops and full disks


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_stop_at_any_system_call_ends_in_the_same_store(
    tmp_path: Path, store: Path, small: Any, contents: Contents, fates: Any, fate: str
) -> None:
    whole = contents(store)
    for number in range(1, LIMIT):
        path = tmp_path / f"stopped_{number}"
        with fates.at(number, getattr(fates, fate)) as calls:
            try:
                small.write(path)
                break
            except fates.Stop:
                pass
        see_no_damage(path)
        small.write(path)
        assert contents(path) == whole
    # Every call of an undisturbed run had its turn: manifest, three shards and their records, two lists, three removals
    assert calls.count == number - 1 == 4 * (1 + 3 + 3 + 2) + 3


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_second_stop_while_going_on_ends_in_the_same_store(
    tmp_path: Path, store: Path, small: Any, contents: Contents, fates: Any, fate: str
) -> None:
    whole = contents(store)
    for number in range(1, LIMIT):
        path = tmp_path / f"stopped_{number}"
        with fates.at(17, fates.stop_within), pytest.raises(fates.Stop):
            small.write(path)
        with fates.at(number, getattr(fates, fate)):
            try:
                small.write(path)
                break
            except fates.Stop:
                pass
        see_no_damage(path)
        small.write(path)
        assert contents(path) == whole
    assert number > 10


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, the claims of this process are those of one that has ended."""

    def end() -> None:
        ended = this_process()._replace(started="ended")
        monkeypatch.setattr("feature_extraction.store.claims.this_process", lambda: ended)

    return end


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_stop_of_a_claiming_process_at_any_call_ends_in_the_same_store(
    tmp_path: Path,
    store: Path,
    small: Any,
    contents: Contents,
    fates: Any,
    gone: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
) -> None:
    """Claims, records and half-written files of the stopped process lie about, and the next one takes them over."""
    whole = contents(store)
    monkeypatch.setattr(StoreWriter, "__exit__", lambda *arguments: None)  # a killed process gives nothing back
    gone()
    for number in range(1, LIMIT):
        path = tmp_path / f"stopped_{number}"
        with fates.at(number, getattr(fates, fate)) as calls:
            try:
                small.share(path)
                break
            except fates.Stop:
                pass
        see_no_damage(path)
        forget_the_nameless(path)
        small.share(path)
        assert contents(path) == whole
    assert calls.count == number - 1 == 4 * (1 + 3 + 3 + 2) + 3 + 3 * 3  # as without claims, and three for each claim


def forget_the_nameless(path: Path) -> None:
    """A claim whose writer was stopped before it said its name is taken over after a minute: make it that old."""
    for claim in path.glob("*.claim"):
        if not claim.read_bytes().endswith(b"}"):
            os.utime(claim, (time.time() - 100, time.time() - 100))


def test_a_full_disk_at_any_system_call_loses_nothing(
    tmp_path: Path, store: Path, small: Any, contents: Contents, fates: Any
) -> None:
    whole = contents(store)
    for number in range(1, LIMIT):
        path = tmp_path / f"full_{number}"
        with fates.at(number, fates.disk_full) as calls:
            try:
                small.share(path)
                break
            except DiskFullError:
                pass
            except OSError:  # removing needs space on some file systems
                assert calls.function is os.unlink
        see_no_damage(path)
        assert small.share(path) is not None
        assert contents(path) == whole
    assert number == calls.count + 1 > 40


# --- several processes


def test_a_shard_is_claimed_once(tmp_path: Path, small: Any) -> None:
    with StoreWriter(tmp_path, small.manifest()) as one, StoreWriter(tmp_path, small.manifest()) as other:
        assert one.claim(one.missing) == 0
        assert other.claim(other.missing) == 1
        assert one.claim(one.missing) == 2
        assert other.claim(other.missing) is None
        me = this_process()
        assert other.others() == [f"shard {number}: {me.host}, process {me.pid}" for number in (0, 2)]
        small.write_shard(one, 0)
        assert other.others() == [f"shard 2: {me.host}, process {me.pid}"]
        assert other.claim([0, 1, 2]) is None
    assert [path.name for path in tmp_path.glob("*.claim")] == []
    assert StoreWriter(tmp_path, small.manifest()).missing == [1, 2]


def test_a_shard_that_another_finishes_just_before_it_is_claimed_is_given_back(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Claims.take

    def slow(claims: Claims, shard: int) -> bool:
        monkeypatch.undo()
        small.write_shard(StoreWriter(tmp_path, small.manifest()), shard)
        return take(claims, shard)

    with StoreWriter(tmp_path, small.manifest()) as writer:
        monkeypatch.setattr(Claims, "take", slow)
        assert writer.claim([0, 1]) == 1
        assert [path.name for path in tmp_path.glob("*.claim")] == [claim_name(1)]


def test_a_finished_shard_is_not_written_again(tmp_path: Path, small: Any) -> None:
    one, other = (StoreWriter(tmp_path, small.manifest()) for _ in range(2))
    small.write_shard(one, 0)
    os.utime(tmp_path / shard_name(0), (0, 0))
    small.write_shard(other, 0)
    assert (tmp_path / shard_name(0)).stat().st_mtime == 0


@pytest.mark.parametrize("call", ["the shard", "its record"])
@pytest.mark.parametrize("reason", ["the store was finished", "the shard was taken over", "somebody tidied up"])
def test_a_half_written_file_that_vanishes_does_harm_only_if_the_work_is_lost(
    tmp_path: Path, small: Any, fates: Any, call: str, reason: str
) -> None:
    writer, other = (StoreWriter(tmp_path, small.manifest()) for _ in range(2))
    assert writer.claim([1]) == 1

    def vanish(function: Callable[..., Any], partial: Path, path: Path) -> None:
        if reason == "the store was finished":
            small.write(tmp_path, writer=other)
        elif reason == "the shard was taken over":
            (tmp_path / claim_name(1)).unlink()
            assert other.claim([1]) == 1
        partial.unlink(missing_ok=True)
        function(partial, path)

    with fates.at({"the shard": 3, "its record": 7}[call], vanish):
        if reason == "somebody tidied up":
            with pytest.raises(FileNotFoundError):
                small.write_shard(writer, 1)
        else:
            small.write_shard(writer, 1)
    assert (1 in writer.missing) == (reason != "the store was finished")
    assert bool(list(tmp_path.glob("*.claim"))) == (reason != "the store was finished")


@pytest.mark.parametrize("step", [3, 7])  # renaming the index, the list of rejected images
def test_two_finish_side_by_side(
    tmp_path: Path, store: Path, small: Any, contents: Contents, fates: Any, step: int
) -> None:
    path = tmp_path / "shared"
    one, other = (StoreWriter(path, small.manifest()) for _ in range(2))
    for number in range(3):
        small.write_shard(one, number)

    def meanwhile(function: Callable[..., Any], *arguments: Any) -> Any:
        other.finish()
        return function(*arguments)

    with fates.at(step, meanwhile):
        one.finish()
    assert contents(path) == contents(store)


def test_an_index_that_vanishes_while_it_is_written_is_no_finished_store(
    tmp_path: Path, small: Any, fates: Any
) -> None:
    writer = StoreWriter(tmp_path, small.manifest())
    for number in range(3):
        small.write_shard(writer, number)

    def vanish(function: Callable[..., Any], partial: Path, path: Path) -> None:
        partial.unlink()
        function(partial, path)

    with fates.at(3, vanish), pytest.raises(FileNotFoundError):
        writer.finish()
    writer.finish()


@pytest.mark.parametrize("writers", [2, 4])
def test_threads_side_by_side_write_each_shard_once_and_the_same_store(
    tmp_path: Path, small: Any, contents: Contents, writers: int
) -> None:
    for trial in range(5):
        path, written = tmp_path / str(trial), []
        start = threading.Barrier(writers)

        def work(path: Path = path, written: list[int] = written, start: threading.Barrier = start) -> None:
            start.wait()
            written.extend(small.share(path, shard_size=1))

        run_threads(work, writers)
        StoreWriter(path, small.manifest(shard_size=1)).finish()
        assert sorted(written) == list(range(10))
        assert contents(path) == contents(small.write(tmp_path / "alone", shard_size=1))


def run_threads(work: Callable[[], None], count: int) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def share_in_a_process(small: Any, path: Path, answers: Any) -> None:
    answers.put(small.share(path, shard_size=1))


def stall_in_a_process(small: Any, path: Path, at: int, stalled: Any) -> None:
    """Write, until a system call that never returns."""
    fsync, count = os.fsync, 0

    def stall(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            stalled.send(None)
            signal.pause()
        fsync(descriptor)

    durable.os.fsync = stall
    small.share(path, shard_size=1)


@pytest.mark.parametrize("at", [4, 7, 9, 12])
def test_what_one_of_four_processes_leaves_when_killed_is_taken_over_at_once(
    tmp_path: Path, small: Any, contents: Contents, at: int
) -> None:
    context, path = multiprocessing.get_context("fork"), tmp_path / "shared"
    answers, (stalled, stalling) = context.Queue(), context.Pipe(duplex=False)
    victim = context.Process(target=stall_in_a_process, args=(small, path, at, stalling))
    victim.start()
    stalled.recv()
    already = set(range(10)) - set(StoreWriter(path, small.manifest(shard_size=1)).missing)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert list(path.glob("*.claim"))

    others = [context.Process(target=share_in_a_process, args=(small, path, answers)) for _ in range(3)]
    for process in others:
        process.start()
    written = [number for _ in others for number in answers.get()]
    for process in others:
        process.join()
    StoreWriter(path, small.manifest(shard_size=1)).finish()
    assert sorted([*already, *written]) == list(range(10))  # each shard once: nothing lost, nothing twice
    assert contents(path) == contents(small.write(tmp_path / "alone", shard_size=1))


def kill_again_and_again(small: Any, path: Path, kills: int, seed: int) -> None:
    """Processes that write the store are killed at random system calls; then one is left in peace."""
    import random

    context, chance = multiprocessing.get_context("fork"), random.Random(seed)
    for _ in range(kills):
        stalled, stalling = context.Pipe(duplex=False)
        victim = context.Process(target=stall_in_a_process, args=(small, path, chance.randint(1, 30), stalling))
        victim.start()
        while victim.is_alive() and not stalled.poll(0.005):
            pass
        victim.kill()
        victim.join()
    small.share(path, shard_size=1)


def test_a_store_is_the_same_after_three_random_kills(tmp_path: Path, small: Any, contents: Contents) -> None:
    kill_again_and_again(small, tmp_path / "killed", kills=3, seed=0)
    assert contents(tmp_path / "killed") == contents(small.write(tmp_path / "alone", shard_size=1))


@pytest.mark.slow
def test_stores_are_the_same_after_two_hundred_random_kills(tmp_path: Path, small: Any, contents: Contents) -> None:
    whole = contents(small.write(tmp_path / "alone", shard_size=1))
    for seed in range(40):
        kill_again_and_again(small, tmp_path / str(seed), kills=5, seed=seed)
        assert contents(tmp_path / str(seed)) == whole


def test_a_process_of_another_machine_is_waited_for_until_its_claim_expires(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Process("node3", "node3 another boot", 4411, "")
    with monkeypatch.context() as patch:
        patch.setattr("feature_extraction.store.claims.this_process", lambda: elsewhere)
        StoreWriter(tmp_path, small.manifest()).claim([0])  # and then its machine loses power
    with StoreWriter(tmp_path, small.manifest()) as writer:
        assert writer.others() == ["shard 0: node3, process 4411"]
        assert writer.claim([0]) is None
    with StoreWriter(tmp_path, small.manifest(), expiry=-1.0) as writer:
        assert writer.claim([0]) == 0
        assert writer.others() == []
