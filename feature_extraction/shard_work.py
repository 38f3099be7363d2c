"""What an extraction and an import share: their part of a store's shards, done beside other processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from feature_extraction.errors import InputDataError, Interrupted
from feature_extraction.progress import Progress
from feature_extraction.store.layout import Rejected
from feature_extraction.store.writer import StoreWriter

POLL = 1.0  # seconds between looks at shards that other processes are writing
TOLERATED = 10  # rejected images that never stop a run, unless none is to be tolerated
IN_A_ROW = 100  # rejected images one after the other that stop a run, as when a disk is gone

Stop = Callable[[], bool]  # True once the user wants the run to end
Say = Callable[[str], None]  # takes one line for the user


class Done(NamedTuple):
    """What became of the shards."""

    images: int  # that this process wrote or rejected
    unfinished: int  # shards that other jobs are still to write


def write_shards(
    writer: StoreWriter, mine: Sequence[int], write_unclaimed: Callable[[Progress], int], *, stop: Stop, say: Say
) -> Done:
    """Have these shards written until none is missing, and close the store if it is whole then.

    Args:
        writer: of the store.
        mine: the shards of this process, in its order.
        write_unclaimed: writes those of them that nobody else is at, and says how many images they are about.
        stop: asked while others are waited for.
        say: takes one line for the user.

    Raises:
        Interrupted: ``stop`` said so.
        DiskFullError: no space is left; the finished shards stay.
    """
    missing = writer.missing
    shards = writer.manifest.shards
    if 0 < len(missing) < shards:
        say(f"Resuming: {shards - len(missing)}/{shards} shards done")
    total = sum(len(writer.rows(number)) for number in missing)
    images = 0
    with Progress(images=total, shards=len(missing), say=say) as progress:
        while True:
            images += write_unclaimed(progress)
            unfinished = writer.missing
            if set(mine).isdisjoint(unfinished):
                break
            progress.wait(writer.others())
            until = time.monotonic() + POLL
            while time.monotonic() < until:
                stop_here(writer, stop)
                time.sleep(0.05)
    if not unfinished:
        writer.finish()
    return Done(images, len(unfinished))


def stop_here(writer: StoreWriter, stop: Stop) -> None:
    """End the run if the user wants that; the open shards are dropped.

    Raises:
        Interrupted: says how far the store is.
    """
    if stop():
        shards = writer.manifest.shards
        raise Interrupted(
            f"{shards - len(writer.missing)}/{shards} shards of {writer.path} are done. The same command goes on"
        )


class Tolerance:
    """How many unusable images a run bears."""

    def __init__(self, *, images: int, fraction: float, advice: str) -> None:
        """Bear this fraction of so many images, and TOLERATED in any case; 0 bears none, 1 any number.

        ``advice`` is for who has too many.
        """
        self._images, self._fraction, self._advice = images, fraction, advice
        self._allowed = max(TOLERATED, int(fraction * images)) if fraction > 0 else 0
        self._in_a_row: list[Rejected] = []

    def count(self, usable: int, rejected: Sequence[Rejected]) -> None:
        """Take note of a batch.

        Raises:
            InputDataError: the last batches held no usable image, and too many others.
        """
        self._in_a_row = [] if usable else [*self._in_a_row, *rejected]
        if len(self._in_a_row) >= IN_A_ROW and self._fraction < 1:
            raise InputDataError(
                f"{len(self._in_a_row)} images in a row cannot be used, as when a disk is gone: "
                f"{_first(self._in_a_row)}. The last shard was not written. See that the files are there and run the "
                "same command with --retry-rejected; with --max-rejected-fraction 1 it goes on all the same"
            )

    def check(self, rejected: Sequence[Rejected], listed: str = "") -> None:
        """Look at all rejected images so far; ``listed`` is a sentence that says where they stand.

        Raises:
            InputDataError: they are too many, or all.
        """
        if self._too_many(rejected):
            raise InputDataError(
                f"{len(rejected)} of {self._images:,} images cannot be used; at most {self._allowed} may be so, and "
                f"not all. The first: {_first(rejected)}. {listed}{self._advice}, or give a higher "
                "--max-rejected-fraction"
            )

    def check_store(self, writer: StoreWriter) -> None:
        """Look at the rejected images of all finished shards; they are listed for the user if they are too many.

        Raises:
            InputDataError: they are too many, or all.
        """
        rejected = writer.rejected
        if self._too_many(rejected):
            self.check(rejected, f"All are listed in {writer.list_rejected()}. ")

    def _too_many(self, rejected: Sequence[Rejected]) -> bool:
        return len(rejected) > min(self._allowed, self._images - 1)


def _first(rejected: Sequence[Rejected]) -> str:
    return "; ".join(entry.reason for entry in rejected[:3])
