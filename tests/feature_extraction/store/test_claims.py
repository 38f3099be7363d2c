from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_extraction.errors import DiskFullError
from feature_extraction.store import claims as store_claims
from feature_extraction.store.claims import (
    Claim,
    Claims,
    Process,
    read_claim,
    read_claims,
    this_machine,
    this_process,
)
from feature_extraction.store.layout import claim_name

OTHER_MACHINE = Process("node3", "node3 another boot", 4411, "17")
TOKEN = "0123456789abcdef"


def leave_claim(
    folder: Path, shard: int, process: Process = OTHER_MACHINE, *, age: float = 0, token: str = TOKEN
) -> Path:
    """A claim of another writer, touched ``age`` seconds ago."""
    path = folder / claim_name(shard)
    path.write_text(json.dumps({**process._asdict(), "token": token}))
    touched = path.stat().st_mtime - age
    os.utime(path, (touched, touched))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def ended() -> Process:
    """A process of this machine that has ended and been waited for."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = store_claims._start_of(child.pid)
    child.wait()
    return this_process()._replace(pid=child.pid, started=started)


# --- taking and giving back


def test_a_shard_has_one_claim_and_is_free_again_afterwards(tmp_path: Path) -> None:
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take(3)
    assert not one.take(3)
    assert not other.take(3)
    assert one.holds(3)
    assert not other.holds(3)
    other.give_back(3)  # it is not its own
    assert one.holds(3)
    one.give_back(3)
    assert names(tmp_path) == []
    assert other.take(3)
    other.close()
    one.close()
    assert names(tmp_path) == []


def test_a_claim_says_who_has_it(tmp_path: Path) -> None:
    claims, other = Claims(tmp_path), Claims(tmp_path)
    claims.take(12)
    leave_claim(tmp_path, 3)
    (tmp_path / claim_name(5)).touch()
    (tmp_path / "shard-x.claim").touch()
    me = this_process()
    assert [str(claim) for claim in read_claims(tmp_path)] == [
        "shard 3: node3, process 4411",
        "shard 5: a process that has not said its name",
        f"shard 12: {me.host}, process {os.getpid()}",
    ]
    assert [claim.shard for claim in claims.others()] == [3, 5]
    assert [claim.shard for claim in other.others()] == [3, 5, 12]
    claims.close()


def test_those_who_are_known_to_be_gone_are_not_among_the_others(tmp_path: Path, ended: Process) -> None:
    leave_claim(tmp_path, 0, ended)
    assert Claims(tmp_path).others() == []


@pytest.mark.parametrize("writers", [2, 8])
def test_of_many_threads_one_gets_a_claim(tmp_path: Path, ended: Process, writers: int) -> None:
    for shard in range(20):
        if shard % 2:
            leave_claim(tmp_path, shard, ended)  # and one takes over what was abandoned
        start, got = threading.Barrier(writers), []

        def work(shard: int = shard, start: threading.Barrier = start, got: list[bool] = got) -> None:
            claims = Claims(tmp_path)
            start.wait()
            got.append(claims.take(shard))

        threads = [threading.Thread(target=work) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(got) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_leaves_no_claim(tmp_path: Path, fates: Any, number: int) -> None:
    with fates.at(number, fates.disk_full), pytest.raises(DiskFullError, match="Disk full writing"):
        Claims(tmp_path).take(0)
    assert names(tmp_path) == []


def test_a_claim_that_vanishes_while_it_is_looked_at_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_claim(tmp_path, 0)

    def vanish(*arguments: Any) -> None:
        path.unlink()

    monkeypatch.setattr(store_claims, "read_claim", vanish)
    assert Claims(tmp_path).take(0)


# --- heartbeats


def wait_until(happens: Callable[[], bool]) -> None:
    for _ in range(100_000):  # a minute or two; it takes some milliseconds
        if happens():
            return
        time.sleep(0.001)
    pytest.fail("it never happened")


def test_a_thread_touches_the_claims_as_long_as_they_are_held(tmp_path: Path) -> None:
    claims = Claims(tmp_path, heartbeat=0.001)
    claims.take(0)
    claims.take(1)
    paths = [tmp_path / claim_name(shard) for shard in (0, 1)]
    for path in paths:
        os.utime(path, (0, 0))
    wait_until(lambda: all(path.stat().st_mtime > 0 for path in paths))
    thread = claims._thread
    assert thread is not None
    assert thread.daemon
    claims.close()
    assert not thread.is_alive()
    assert claims.take(0)  # it may go on after that
    os.utime(paths[0], (0, 0))
    wait_until(lambda: paths[0].stat().st_mtime > 0)
    claims.close()
    assert names(tmp_path) == []


def test_a_claim_of_another_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look(path: Path, shard: int) -> Claim | None:
        looks.append(shard)
        return read_claim(path, shard)

    monkeypatch.setattr(store_claims, "read_claim", look)
    claims = Claims(tmp_path, heartbeat=0.001)
    claims.take(0)
    (tmp_path / claim_name(0)).unlink()
    path = leave_claim(tmp_path, 0)
    os.utime(path, (0, 0))
    seen = len(looks)
    wait_until(lambda: len(looks) > seen + 3)
    assert path.stat().st_mtime == 0
    assert claims.lost(0)
    claims.close()
    assert names(tmp_path) == [claim_name(0)]


def test_a_file_system_that_fails_for_a_moment_ends_no_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def fail_at_first(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OSError("stale file handle")

    claims = Claims(tmp_path, heartbeat=0.001)
    monkeypatch.setattr("feature_extraction.store.claims.os.utime", fail_at_first)
    claims.take(0)
    wait_until(lambda: len(calls) >= 3)
    claims.close()


def test_claims_that_nobody_uses_any_more_are_not_touched(tmp_path: Path) -> None:
    """As in a notebook, where a program ended with an error and its process lives on."""
    claims = Claims(tmp_path)
    claims.take(0)
    thread = claims._thread
    assert thread is not None
    del claims
    thread.join()
    assert names(tmp_path) == [claim_name(0)]


# --- taking over


def test_a_claim_of_a_process_that_has_ended_is_taken_over_at_once(tmp_path: Path, ended: Process) -> None:
    leave_claim(tmp_path, 0, ended)
    claims = Claims(tmp_path)
    assert claims.take(0)
    assert claims.holds(0)
    assert names(tmp_path) == [claim_name(0)]


def test_what_the_former_owner_left_half_written_goes_with_its_claim(tmp_path: Path, ended: Process) -> None:
    leave_claim(tmp_path, 7, ended)
    of_the_dead = [f"shard-00007.{kind}.{TOKEN}.partial" for kind in ("safetensors", "json")]
    of_others = ["shard-00007.json.fedcba9876543210.partial", f"shard-00008.json.{TOKEN}.partial"]
    for name in [*of_the_dead, *of_others]:
        (tmp_path / name).touch()
    assert Claims(tmp_path).take(7)
    assert names(tmp_path) == sorted([claim_name(7), *of_others])


@pytest.mark.parametrize("age", [0, 59])
def test_a_claim_of_another_machine_stands_as_long_as_it_is_touched(tmp_path: Path, age: float) -> None:
    path = leave_claim(tmp_path, 0, age=age)
    before = path.read_bytes()
    assert not Claims(tmp_path).take(0)
    assert path.read_bytes() == before
    assert names(tmp_path) == [claim_name(0)]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"token": "../../x"}'])
def test_a_claim_that_has_not_been_touched_for_a_minute_is_taken_over_whoever_had_it(
    tmp_path: Path, content: bytes | None
) -> None:
    path = leave_claim(tmp_path, 0)
    if content is not None:
        path.write_bytes(content)
    assert not Claims(tmp_path).take(0)
    os.utime(path, (path.stat().st_mtime - 61,) * 2)
    assert Claims(tmp_path).take(0)
    assert names(tmp_path) == [claim_name(0)]


def test_a_shorter_expiry_takes_over_earlier(tmp_path: Path) -> None:
    leave_claim(tmp_path, 0, age=2)
    assert not Claims(tmp_path, expiry=3.0).take(0)
    assert Claims(tmp_path, expiry=1.0).take(0)


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_the_clock_of_this_machine_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    wrong = time.time() + skew
    monkeypatch.setattr(time, "time", lambda: wrong)
    leave_claim(tmp_path, 0)
    leave_claim(tmp_path, 1, age=61)
    claims = Claims(tmp_path)
    assert not claims.take(0)
    assert claims.take(1)


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_only_the_clock_of_the_file_system_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """A server whose clock is far from this machine's gives its own time to what is touched."""
    utime = os.utime

    def touch(path: Path, times: tuple[float, float] | None = None) -> None:
        utime(path, (times[0], times[1]) if times else (time.time() + skew,) * 2)

    monkeypatch.setattr("feature_extraction.store.claims.os.utime", touch)
    for shard, age in enumerate((5, 61)):
        path = leave_claim(tmp_path, shard)
        touch(path)
        touch(path, (path.stat().st_mtime - age,) * 2)
    claims = Claims(tmp_path)
    assert not claims.take(0)
    assert claims.take(1)


def test_a_store_that_is_tidied_up_meanwhile_has_nothing_to_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_claim(tmp_path, 0, age=100)

    def tidy(path: Path) -> None:
        path.unlink()
        raise FileNotFoundError

    monkeypatch.setattr("feature_extraction.store.claims.os.utime", tidy)
    assert not Claims(tmp_path).take(0)
    assert names(tmp_path) == [claim_name(0)]


@pytest.mark.parametrize("successor", ["a new claim", "nothing"])
def test_a_claim_that_another_took_over_meanwhile_stays_with_it(tmp_path: Path, ended: Process, successor: str) -> None:
    path = leave_claim(tmp_path, 0, ended)
    abandoned = read_claim(path, 0)
    assert abandoned is not None
    path.unlink()
    other = Claims(tmp_path)
    if successor == "a new claim":
        assert other.take(0)
    before = names(tmp_path)
    assert not Claims(tmp_path)._discard(path, abandoned)
    assert names(tmp_path) == before
    assert other.holds(0) == (successor == "a new claim")


@pytest.mark.parametrize("token", [TOKEN, ""])
def test_one_process_takes_over_while_the_others_wait(tmp_path: Path, ended: Process, token: str) -> None:
    path = leave_claim(tmp_path, 0, ended, token=token)
    os.utime(path, (0, 0))
    permit = tmp_path / f"{claim_name(0)}.{token or 'nameless'}.partial"
    leave_claim(tmp_path, 1).rename(permit)
    assert not Claims(tmp_path).take(0)
    assert names(tmp_path) == [claim_name(0), permit.name]
    leave_claim(tmp_path, 1, ended).rename(permit)  # the one that wanted to take over has ended too
    assert not Claims(tmp_path).take(0)
    assert names(tmp_path) == [claim_name(0)]
    assert Claims(tmp_path).take(0)


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_takeover_that_is_stopped_at_any_call_does_not_keep_the_next_away(
    tmp_path: Path, ended: Process, fates: Any, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        leave_claim(folder, 0, ended)
        with monkeypatch.context() as patch, fates.at(number, getattr(fates, fate)) as calls:
            patch.setattr(store_claims, "this_process", lambda: ended)
            try:
                Claims(folder).take(0)
                break
            except fates.Stop:
                pass
        for path in folder.iterdir():  # who was stopped before saying its name is gone after a minute
            os.utime(path, (0, 0))
        claims = Claims(folder)
        assert claims.take(0) or claims.take(0)
        assert claims.holds(0)
        # A permit may be left; the store's last step removes it.
        assert set(names(folder)) <= {claim_name(0), f"{claim_name(0)}.{TOKEN}.partial"}
    assert calls.count == number - 1 == 2 + 1 + 1 + 2  # the permit, removing the old claim and the permit, a new claim


def test_a_takeover_that_ends_meanwhile_leaves_nothing_to_do(
    tmp_path: Path, ended: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_claim(tmp_path, 0, ended)
    create = store_claims.create_exclusively

    def too_late(path: Path, data: bytes) -> bool:
        return not path.name.endswith(".partial") and create(path, data)

    monkeypatch.setattr(store_claims, "create_exclusively", too_late)
    assert not Claims(tmp_path).take(0)
    assert names(tmp_path) == [claim_name(0)]


def test_a_shard_may_be_claimed_by_a_third_just_after_its_claim_was_removed(
    tmp_path: Path, ended: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_claim(tmp_path, 0, ended)
    third, discard = Claims(tmp_path), Claims._discard

    def and_then(claims: Claims, path: Path, claim: Claim) -> bool:
        monkeypatch.undo()
        return discard(claims, path, claim) and third.take(0)

    monkeypatch.setattr(Claims, "_discard", and_then)
    assert not Claims(tmp_path).take(0)
    assert third.holds(0)


# --- processes


def test_this_process_is_alive_and_an_ended_one_is_gone(ended: Process) -> None:
    assert not this_process().gone
    assert ended.gone
    assert store_claims._start_of(ended.pid) == ""


def test_another_process_with_the_same_number_is_not_the_one(ended: Process) -> None:
    assert this_process()._replace(started="1").gone


def test_nothing_is_known_of_other_machines(ended: Process) -> None:
    assert not ended._replace(machine="elsewhere").gone


def test_nothing_is_known_of_processes_of_other_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr("feature_extraction.store.claims.os.kill", refuse)
    assert not this_process()._replace(started="1").gone


def test_a_process_that_ended_and_that_nobody_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    zombie = this_process()._replace(pid=child.pid, started="not known")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert store_claims._start_of(child.pid) == "ended"
    assert zombie.gone
    child.wait()


def test_where_the_machine_does_not_say_when_a_process_began_its_number_counts(
    monkeypatch: pytest.MonkeyPatch, ended: Process
) -> None:
    monkeypatch.setattr(store_claims, "_start_of", lambda pid: "")
    assert not this_process().gone
    assert ended._replace(started="").gone


def test_a_process_name_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = " ".join(str(number) for number in range(4, 40))
    monkeypatch.setattr(Path, "read_text", lambda path: f"12 (a ) b (c) S {fields}")
    assert store_claims._start_of(12) == "22"


def test_a_machine_that_tells_nothing_of_itself_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise FileNotFoundError

    host = this_process().host
    assert this_machine().startswith(host)
    monkeypatch.setattr(Path, "read_text", fail)
    assert this_machine.__wrapped__() == host


def test_a_claim_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = leave_claim(tmp_path, 4)
    assert read_claim(path, 4) == Claim(4, OTHER_MACHINE, TOKEN, path.stat().st_mtime)
    assert read_claim(tmp_path / "absent", 4) is None


@pytest.mark.parametrize(
    "change", [{"pid": "12"}, {"token": "x"}, {"more": 1}, {"token": None}], ids=lambda change: str(change)
)
def test_a_claim_that_is_no_claim_is_of_an_unknown_process(tmp_path: Path, change: dict[str, Any]) -> None:
    path = leave_claim(tmp_path, 4)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_claim(path, 4) == Claim(4, None, "", path.stat().st_mtime)
