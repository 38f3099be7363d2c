"""Looking after a store: every fault of its files, what is in it, and what to write anew. Imports no torch."""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.durable import remove, write_durably
from feature_extraction.errors import DamagedError, UsageError
from feature_extraction.store.claims import Claim, read_claims
from feature_extraction.store.layout import (
    INDEX,
    MANIFEST,
    REJECTED,
    Fault,
    Manifest,
    Rejected,
    Shard,
    claim_name,
    contents_digest,
    damaged_line,
    index_bytes,
    index_lines,
    other_images,
    parse_index,
    read_manifest,
    record_name,
    rejected_lines,
    same_images,
    shard_name,
)
from feature_extraction.store.records import FinishedShards, read_record
from feature_extraction.store.shards import shard_fault
from feature_extraction.store.writer import is_working_file, refuse_another_store

LISTED = 20  # faults in a message; a report has them all

_SHARD = re.compile(r"shard-(\d+)(?:\.(safetensors|json|claim))?")


@dataclass(frozen=True)
class Report:
    """What was found in a store."""

    store: Path
    shards: int  # of the finished store
    finished: int  # of them, damaged ones included
    images: int  # with features
    rejected: int
    bytes: int  # of the shards
    faults: tuple[Fault, ...]
    left_overs: tuple[str, ...]  # files of stopped processes in a finished store; the next extraction removes them
    orphans: tuple[str, ...]  # files that are no part of a store
    digest: str | None  # of the contents, see contents_digest; None as long as shards are missing or faulty

    @property
    def summary(self) -> str:
        """The report in a line."""
        parts = [
            f"{self.finished} of {self.shards} shards",
            f"{self.images:,} images",
            f"{self.rejected} rejected",
            f"{self.bytes / 1e6:,.1f} MB",
            _count(self.faults, "fault"),
        ]
        parts += [f"{_count(names, what)} ({names[0]})" for names, what in self._superfluous if names]
        parts += [] if self.digest is None else [f"contents {self.digest}"]
        return ", ".join(parts)

    def refuse_faults(self) -> None:
        """Check that there are none.

        Raises:
            DamagedError: lists them, and how to write what is damaged anew.
        """
        if not self.faults:
            return
        lines = [f"  {fault.file}: expected {fault.expected}, got {fault.got}" for fault in self.faults[:LISTED]]
        if len(self.faults) > LISTED:
            lines.append(f"  and {len(self.faults) - LISTED} more")
        advice = f"To write what is damaged anew, run: python -m dept_vl.extract --repair {self.store}"
        if self.faults[0].file == MANIFEST:
            advice = f"Restore {MANIFEST} from a copy, or delete the folder and extract again"
        raise DamagedError("\n".join([f"{self.store} has {_count(self.faults, 'fault')}:", *lines, advice]))

    @property
    def _superfluous(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (self.left_overs, "left-over file"), (self.orphans, "foreign file")


def check(store: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read all of a store, finished or not, and report every fault.

    ``progress`` is called after each shard with the bytes read so far and those to read in all.

    Raises:
        InputDataError: no store.
        IncompatibleError: a layout that this version does not read.
    """
    names = sorted(os.listdir(store)) if store.is_dir() else []
    try:
        manifest: Manifest | None = read_manifest(store)
        faults = []
    except DamagedError:
        manifest, faults = None, [Fault(MANIFEST, "contents that fit its digest", "others")]
    count = _count_shards(names) if manifest is None else manifest.shards
    told = FinishedShards(store, count).told()
    faults += [*_index_faults(store, set(names), told, count), *_record_faults(store, set(names), count)]
    done, total = 0, sum(shard.bytes for shard in told.values())
    for number, shard in told.items():
        fault = shard_fault(store, manifest, number, shard)
        faults += [] if fault is None else [fault]
        done += shard.bytes
        progress(done, total)

    shards, digest = list(told.values()), None
    if manifest is not None and len(shards) == count:
        faults += [] if same_images(manifest, shards) else [other_images(manifest)]
        digest = None if faults else contents_digest(manifest, shards)
    finished = _is_finished(store, count)
    if finished:
        faults += _rejected_faults(store, shards)
    known = {MANIFEST, INDEX, REJECTED, *map(shard_name, range(count))}
    return Report(
        store,
        count,
        len(shards),
        sum(len(shard.ids) for shard in shards),
        sum(len(shard.rejected) for shard in shards),
        total,
        tuple(faults),
        tuple(name for name in names if finished and is_working_file(name)),
        tuple(name for name in names if not is_working_file(name) and name not in known),
        digest,
    )


def clear_damaged(store: Path, files: Iterable[str]) -> list[int]:
    """Make damaged shards count as missing, so that an extraction writes them anew; the numbers of all missing ones.

    Args:
        store: the store's folder.
        files: those of a report's faults, or names of shards. Damaged lines of the index go in any case.

    Raises:
        InputDataError: no store.
        DamagedError: its manifest is damaged, which only a copy can mend.
        UsageError: a file that is none of a shard.
    """
    manifest = read_manifest(store)
    damaged = set()
    for file in files:
        match = _SHARD.fullmatch(file)
        if match is not None and int(match[1]) < manifest.shards:
            damaged.add(int(match[1]))
        elif file not in (INDEX, REJECTED):
            last = shard_name(manifest.shards - 1)
            raise UsageError(f"{file!r} is no shard of {store}; its shards are {shard_name(0)} to {last}")
    told = FinishedShards(store, manifest.shards).told()
    if len(told) == manifest.shards and not same_images(manifest, told.values()):
        damaged.update(told)  # nobody can tell which of them are of other images
    return _keep(store, manifest, {number: shard for number, shard in told.items() if number not in damaged})


def forget_rejected(store: Path, manifest: Manifest) -> list[int]:
    """Make the shards with rejected images count as missing, so that an extraction tries them again; their numbers.

    Raises:
        InputDataError: no store.
        IncompatibleError: it is not the store of this manifest.
        DamagedError: its manifest is damaged.
    """
    refuse_another_store(store, manifest)
    told = FinishedShards(store, manifest.shards).told()
    _keep(store, manifest, {number: shard for number, shard in told.items() if not shard.rejected})
    return [number for number, shard in told.items() if shard.rejected]


def describe(store: Path) -> list[str]:
    """What a store holds and how far it is, in lines for the user. Reads no shard.

    Raises:
        InputDataError, IncompatibleError, DamagedError: as ``read_manifest``.
    """
    manifest = read_manifest(store)
    finished = FinishedShards(store, manifest.shards).read()
    shards = list(finished.values())
    rejected = [entry for shard in shards for entry in shard.rejected]
    images = sum(len(shard.ids) for shard in shards)
    complete = len(shards) == manifest.shards
    state = "finished" if _is_finished(store, manifest.shards) else "not finished"
    rows = [("store", str(store)), *((name, str(value)) for name, value in manifest.identity.items())]
    rows += [
        (f"field {name}", f"{field.dtype} {' x '.join(map(str, field.shape))}")
        for name, field in manifest.fields.items()
    ]
    rows += [("source", source) for source in manifest.source]
    rows += [
        ("images", f"{images:,} with features, {len(rejected):,} rejected, {manifest.images:,} in all"),
        ("shards", f"{len(shards)} of {manifest.shards}, {state}"),
        ("size", f"{sum(shard.bytes for shard in shards) / 1e6:,.1f} MB, {manifest.bytes_per_image:,} bytes per image"),
        ("identity", manifest.identity_digest),
    ]
    rows += [("contents", contents_digest(manifest, shards))] if complete else []
    rows += [("at work", _worker(claim)) for claim in read_claims(store)]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows] + _rejected_by_reason(rejected)


def _keep(store: Path, manifest: Manifest, kept: Mapping[int, Shard]) -> list[int]:
    """Take all other shards out of the index, then remove their records and files; their numbers."""
    index = index_lines(kept.values())
    if index_bytes(store) not in (b"", index):
        write_durably(store / INDEX, index, writer=secrets.token_hex(8))
    missing = [number for number in range(manifest.shards) if number not in kept]
    for name in (record_name, shard_name):
        for number in missing:
            remove(store / name(number))
    return missing


def _index_faults(store: Path, names: set[str], told: Mapping[int, Shard], count: int) -> Iterator[Fault]:
    """Lines that are not what was written, of shards that there are not, or missing for shards that there are."""
    index, damaged_lines = parse_index(index_bytes(store))
    yield from (damaged_line(number) for number in damaged_lines)
    files = {shard_name(number): number for number in range(count)}
    yield from (Fault(INDEX, f"lines of {count} shards", f"one of {file}") for file in index if file not in files)
    if INDEX in names and not damaged_lines:
        for file, number in files.items():
            if number not in told and file in names and claim_name(number) not in names:
                yield Fault(INDEX, f"a line of {file}", "none")


def _record_faults(store: Path, names: set[str], count: int) -> Iterator[Fault]:
    for name in map(record_name, range(count)):
        if name in names and read_record(store / name) is None:
            yield Fault(name, "contents that fit its digest", "others")


def _rejected_faults(store: Path, shards: Sequence[Shard]) -> Iterator[Fault]:
    path = store / REJECTED
    got = path.read_bytes() if path.exists() else None
    if got != rejected_lines(shards):
        count = sum(len(shard.rejected) for shard in shards)
        yield Fault(REJECTED, f"the {count:,} rejected images of {INDEX}", "no such file" if got is None else "others")


def _is_finished(store: Path, count: int) -> bool:
    index, _ = parse_index(index_bytes(store))
    return (store / INDEX).exists() and all(shard_name(number) in index for number in range(count))


def _count_shards(names: Iterable[str]) -> int:
    """How many shards a store has whose manifest does not say so, as far as its files tell."""
    return max((int(match[1]) + 1 for match in map(_SHARD.fullmatch, names) if match is not None), default=0)


def _count(found: Sequence[object], what: str) -> str:
    return f"{len(found):,} {what}{'' if len(found) == 1 else 's'}"


def _worker(claim: Claim) -> str:
    return f"{claim}{', which is gone' if claim.process is not None and claim.process.gone else ''}"


def _rejected_by_reason(rejected: list[Rejected]) -> list[str]:
    """A line for each kind of reason, the most frequent first, with its first image."""
    first = {_kind(entry): entry for entry in reversed(rejected)}
    counts = Counter(map(_kind, rejected))
    return [f"rejected {count:,}: {kind}; the first is {first[kind].reason}" for kind, count in counts.most_common()]


def _kind(entry: Rejected) -> str:
    """The first clause of a reason, without the file and its size, and without numbers."""
    reason = re.sub(r"^[\s:]*(\([^)]*\))?[\s:]*", "", entry.reason.removeprefix(entry.file))
    return re.sub(r"\b\d[\d,.]*", "N", re.split(r"[:;(]", reason, maxsplit=1)[0].strip())
