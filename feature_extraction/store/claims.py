"""Who works on which shard of a store, so that several processes share the work without a lock. Imports no torch.

A claim is a small file that one process creates exclusively and touches while it is at work. It is taken over at once
from a process that is known to be gone, and otherwise when it has not been touched for a minute, by the clock of the
file system. Claims save work, nothing more: two processes that write the same shard write the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from feature_extraction.durable import PARTIAL_SUFFIX, create_exclusively, remove
from feature_extraction.store.layout import claim_name

HEARTBEAT, EXPIRY = 10.0, 60.0  # seconds between two touches of a claim; without a touch until it is taken over

_CLAIM = re.compile(r"shard-(\d+)\.claim")
_TOKEN = re.compile(r"[0-9a-f]{16}")


class Process(NamedTuple):
    """A process as others can find it again, or find it gone."""

    host: str  # for people
    machine: str  # equal where process numbers mean the same: host, boot and, in containers, the process namespace
    pid: int
    started: str  # by the machine's own count, since process numbers are used again; empty where it does not say

    @property
    def gone(self) -> bool:
        """Whether this process is known to have ended. Of other machines and other users, nothing is known."""
        if self.machine != this_machine():
            return False
        try:
            os.kill(self.pid, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _start_of(self.pid) not in ("", self.started)


class Claim(NamedTuple):
    """A claim as found on disk."""

    shard: int
    process: Process | None  # None while it is being written, or if that was stopped
    token: str  # of the writer: a process may have several
    touched: float  # seconds, by the clock of the file system

    def __str__(self) -> str:
        if self.process is None:
            return f"shard {self.shard}: a process that has not said its name"
        return f"shard {self.shard}: {self.process.host}, process {self.process.pid}"


class Claims:
    """The claims of one writer. From the first one on, a thread of this process touches them.

    The thread ends with ``close``, or when nobody uses the object any more: then its claims expire.
    """

    def __init__(self, store: Path, *, heartbeat: float = HEARTBEAT, expiry: float = EXPIRY) -> None:
        self.token = secrets.token_hex(8)
        self._store = store
        self._heartbeat, self._expiry = heartbeat, expiry
        self._held: set[int] = set()
        self._closed = threading.Event()
        weakref.finalize(self, self._closed.set)
        self._thread: threading.Thread | None = None

    def take(self, shard: int) -> bool:
        """Claim a shard; False where a process that may be alive has claimed it.

        Raises:
            DiskFullError: there is no space for the claim.
        """
        path = self._store / claim_name(shard)
        if not self._create(path):
            claim = read_claim(path, shard)
            if claim is not None and not (self._is_abandoned(claim) and self._discard(path, claim)):
                return False
            if not self._create(path):
                return False
        self._held.add(shard)
        if self._thread is None:
            self._closed.clear()
            arguments = (self._store, self.token, self._held, self._closed, self._heartbeat)
            self._thread = threading.Thread(target=_keep_touching, args=arguments, daemon=True)
            self._thread.start()
        return True

    def holds(self, shard: int) -> bool:
        """Whether this writer's claim still stands."""
        return _holds(self._store, shard, self.token)

    def lost(self, shard: int) -> bool:
        """Whether this writer had claimed the shard and another has taken it over."""
        return shard in self._held and not self.holds(shard)

    def give_back(self, shard: int) -> None:
        """Remove the claim of this writer, if it has one."""
        if shard in self._held:
            self._held.discard(shard)
            if self.holds(shard):
                remove(self._store / claim_name(shard))

    def others(self) -> list[Claim]:
        """The claims of other writers that are not known to be gone, in the order of the shards."""
        claims = [claim for claim in read_claims(self._store) if claim.token != self.token]
        return [claim for claim in claims if claim.process is None or not claim.process.gone]

    def close(self) -> None:
        """Give all claims back and end the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for shard in sorted(self._held):
            self.give_back(shard)

    def _create(self, path: Path) -> bool:
        return create_exclusively(path, json.dumps({**this_process()._asdict(), "token": self.token}).encode())

    def _is_abandoned(self, claim: Claim) -> bool:
        if claim.process is not None and claim.process.gone:
            return True
        return self._now() - claim.touched > self._expiry

    def _now(self) -> float:
        """The clock of the file system, which touches are measured by; other machines' clocks may differ."""
        probe = self._store / f"clock.{self.token}{PARTIAL_SUFFIX}"
        create_exclusively(probe, b"")
        try:
            os.utime(probe)
            return probe.stat().st_mtime
        except FileNotFoundError:  # another process has finished the store and tidied up: nothing is to be taken over
            return 0.0
        finally:
            remove(probe)

    def _discard(self, path: Path, claim: Claim) -> bool:
        """Remove an abandoned claim, and what its writer left half-written; False if another process does it.

        It takes a permit for this very claim, so that of several processes that found it abandoned none removes the
        claim of the first to take the shard over.
        """
        permit = path.with_name(f"{path.name}.{claim.token or 'nameless'}{PARTIAL_SUFFIX}")
        if not self._create(permit):
            holder = read_claim(permit, claim.shard)
            if holder is not None and self._is_abandoned(holder):
                remove(permit)  # for the next attempt
            return False
        try:
            found = read_claim(path, claim.shard)
            if found is None or found.token != claim.token:
                return False
            for left_over in self._store.glob(f"{path.stem}.*.{claim.token}{PARTIAL_SUFFIX}") if claim.token else ():
                if left_over != permit:
                    remove(left_over)
            remove(path)
            return True
        finally:
            remove(permit)


def _keep_touching(store: Path, token: str, held: set[int], closed: threading.Event, heartbeat: float) -> None:
    while not closed.wait(heartbeat):
        for shard in tuple(held):
            with suppress(OSError):  # a network that fails for a moment: the next touch comes soon
                if _holds(store, shard, token):
                    os.utime(store / claim_name(shard))


def _holds(store: Path, shard: int, token: str) -> bool:
    claim = read_claim(store / claim_name(shard), shard)
    return claim is not None and claim.token == token


def read_claims(store: Path) -> list[Claim]:
    """All claims of a store, in the order of the shards."""
    names = (_CLAIM.fullmatch(name) for name in os.listdir(store))
    found = (read_claim(store / name[0], int(name[1])) for name in names if name is not None)
    return sorted((claim for claim in found if claim is not None), key=lambda claim: claim.shard)


def read_claim(path: Path, shard: int) -> Claim | None:
    """The claim in a file, or None where there is no file."""
    try:
        with path.open("rb") as file:  # opened before it is asked for its age: NFS answers anew
            touched, text = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None
    try:
        record = json.loads(text)
        token = str(record.pop("token"))
        process = Process(**record)
        known = bool(_TOKEN.fullmatch(token)) and isinstance(process.pid, int)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        known = False
    return Claim(shard, process, token, touched) if known else Claim(shard, None, "", touched)


def this_process() -> Process:
    """The process that asks."""
    return Process(socket.gethostname(), this_machine(), os.getpid(), _start_of(os.getpid()))


@cache
def this_machine() -> str:
    """The host name, and where there are such things the boot and the namespace of process numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """When a process began, in the machine's ticks; "ended" if only its number is left, "" where nothing is told."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in "ZX" else fields[18]  # field 22 of proc(5), of which the state is field 3
