"""How far an extraction or import is, for the user."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence, Sized

from tqdm import tqdm


def to_stderr(line: str) -> None:
    """Write one line for the user; standard output is left to results."""
    sys.stderr.write(line + "\n")


class Progress:
    """Images per second, time left and rejected images: a bar on a terminal, else a line for each shard.

    Other processes may write shards of the same store; what they finish is counted too.
    """

    def __init__(self, *, images: int, shards: int, say: Callable[[str], None]) -> None:
        """Begin with so many images and shards to do."""
        self._images, self._shards, self._say = images, shards, say
        self._open = self._rejected = 0  # images of shards not written yet, and all rejected ones: of this process
        self._finished = 0
        self._waiting_for: Sequence[str] = ()
        self._started = time.monotonic()
        on_terminal = sys.stderr.isatty() and images > 0
        self._bar = tqdm(total=images, unit=" images", file=sys.stderr, disable=not on_terminal)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def images_done(self, images: int, *, rejected: int) -> None:
        """Count a batch, and the rejected images in it."""
        self._open += images
        self._rejected += rejected
        self._bar.set_postfix_str(f"{self._rejected} rejected", refresh=False)
        self._bar.update(self._finished + self._open - self._bar.n)

    def shards_left(self, missing: Iterable[int], rows: Callable[[int], Sized]) -> None:
        """A shard of this process is safely on disk, and these are still missing."""
        left = list(missing)
        self._open = 0
        self._finished = self._images - sum(len(rows(number)) for number in left)
        self._bar.update(self._finished - self._bar.n)
        if self._bar.disable:
            rate = self._finished / max(time.monotonic() - self._started, 1e-9)
            time_left = tqdm.format_interval((self._images - self._finished) / max(rate, 1e-9))
            self._say(
                f"{self._finished:,}/{self._images:,} images, {self._shards - len(left)}/{self._shards} shards, "
                f"{rate:,.0f} images/s, {time_left} left, {self._rejected} rejected"
            )

    def wait(self, others: Sequence[str]) -> None:
        """Say once who is still at work."""
        if others and not self._waiting_for:
            self._say(f"Waiting for {len(others)} shards of others: {'; '.join(others[:3])}")
        self._waiting_for = others
