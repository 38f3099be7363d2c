"""The fixed batches of a store's shards, decoded and resized by worker processes. Imports no torch.

Pixels come back through memory that parent and worker share; pickling 64 images of 224 x 224 through a pipe takes the
main process ten times as long. The memory has no name: nothing is left of it when the processes are gone, however they
end, and the small /dev/shm of a container does not limit it.
"""

from __future__ import annotations

import atexit
import mmap
import os
import pickle
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

from feature_extraction.images.decoding import ImageFile, ImageRejected
from feature_extraction.images.inputs import Inputs, Preparation
from feature_extraction.store.layout import Rejected

AHEAD = 2  # batches that a worker may hold: one that waits to be fetched, and one that is being decoded
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # to a whole job: the main process decides when to stop
_NO_MEMORY = 6  # the exit code of a worker that ran out of memory


class Batch(NamedTuple):
    """Images that go through the backbone together."""

    shard: int
    last_of_shard: bool
    images: Sequence[ImageFile]


class DecodedBatch(NamedTuple):
    """The usable images of a batch with their pixels, and the others."""

    shard: int
    last_of_shard: bool
    images: list[ImageFile]
    inputs: Inputs | None  # of the usable images; None where there is none
    rejected: list[Rejected]


def shard_batches(number: int, images: Sequence[ImageFile], batch_size: int) -> list[Batch]:
    """The batches of a shard, which hold the same images whatever else is to be done; the last one may be smaller."""
    starts = range(0, len(images), batch_size)
    return [Batch(number, start == starts[-1], images[start : start + batch_size]) for start in starts]


def decode_batch(batch: Batch, preparation: Preparation) -> DecodedBatch:
    """Decode the images of a batch and make the networks' inputs."""
    images: list[ImageFile] = []
    inputs: list[Inputs] = []
    rejected: list[Rejected] = []
    for image in batch.images:
        try:
            inputs.append(preparation.of_file(image))
        except ImageRejected as error:
            rejected.append(Rejected(image.image_id, image.name, str(error)))
        else:
            images.append(image)
    return DecodedBatch(batch.shard, batch.last_of_shard, images, Inputs.joined(inputs) if inputs else None, rejected)


def decoded_batches(
    batches: Iterable[Batch], preparation: Preparation, *, workers: int
) -> Generator[DecodedBatch, None, None]:
    """The batches in their order; with ``workers`` 0 decoded in this process. Close it to end the workers.

    Of ``batches``, AHEAD for each worker are taken before the first result is given, and then one for each result.

    Raises:
        MemoryError: a worker ran out of memory, or the system killed it.
        RuntimeError: a worker failed.
    """
    if workers == 0:
        for batch in batches:
            yield decode_batch(batch, preparation)
        return
    team: list[_Worker] = []
    under_way: deque[_Worker] = deque()  # for each batch under way, whose it is
    try:
        for number, batch in enumerate(batches):
            if number < workers:
                team.append(_Worker(preparation))
            if len(under_way) == AHEAD * workers:
                yield under_way.popleft().fetch()
            worker = team[number % workers]
            worker.ask(batch)
            under_way.append(worker)
        while under_way:
            yield under_way.popleft().fetch()
    finally:
        for worker in team:
            worker.end()


class _Memory:
    """Memory that processes share through a file descriptor; it grows when it must."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls) -> _Memory:
        """Memory that no other process has yet."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("decoded-images"))
        with tempfile.TemporaryFile() as file:  # without a name as well
            return cls(os.dup(file.fileno()))

    def view(self, size: int) -> memoryview:
        """Its first ``size`` bytes."""
        if self._map is None or len(self._map) < size:
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, size)
        return memoryview(self._map)[:size]

    def close(self) -> None:
        """Give it back, as far as this process holds it."""
        self._map = None
        os.close(self.descriptor)


class _Worker:
    """A process that decodes the batches it is asked for, at most AHEAD at a time, and gives them back in order."""

    def __init__(self, preparation: Preparation) -> None:
        self._connection, theirs = Pipe()
        self._process = Process(target=_work, args=(preparation, theirs, self._connection), daemon=True)
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # none may come before the worker ignores them
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        theirs.close()  # the worker's own copy is the only one now, so that its death ends the connection
        # The worker ignores the signal by which multiprocessing would end it when this process exits.
        atexit.register(self._process.kill)
        self._memories = deque(_Memory.new() for _ in range(AHEAD))
        for memory in self._memories:
            send_handle(self._connection, memory.descriptor, self._process.pid)

    def ask(self, batch: Batch) -> None:
        """Send a batch to be decoded."""
        try:
            self._connection.send(batch)
        except ConnectionError as error:
            raise self._failure() from error

    def fetch(self) -> DecodedBatch:
        """The earliest batch that was asked for and not fetched yet."""
        try:
            lengths: list[int] = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._failure() from error
        with self._memories[0].view(sum(lengths)) as view:
            ends = [sum(lengths[: place + 1]) for place in range(len(lengths))]
            head, *buffers = (bytearray(view[end - length : end]) for length, end in zip(lengths, ends, strict=True))
        self._memories.rotate(-1)
        decoded: DecodedBatch = pickle.loads(head, buffers=buffers)  # noqa: S301 - from our own process
        return decoded

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        atexit.unregister(self._process.kill)
        self._connection.close()
        for memory in self._memories:
            memory.close()

    def _failure(self) -> Exception:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0 or code == _NO_MEMORY:
            how = "ran out of memory" if code > 0 else f"was killed by {signal.Signals(-code).name}"
            return MemoryError(
                f"A decoding process {how}{', as systems do when memory runs out' if code < 0 else ''}. The finished "
                "shards stay: run the same command again with a lower features.workers or features.max_pixels"
            )
        return RuntimeError(f"A decoding process failed with exit code {code}; its traceback stands above")


def _work(preparation: Preparation, connection: Connection, parents: Connection) -> None:
    parents.close()  # the main process's copy is the only one now, so that its death ends the connection
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        memories = deque(_Memory(recv_handle(connection)) for _ in range(AHEAD))
        while True:
            _give(decode_batch(connection.recv(), preparation), memories[0], connection)
            memories.rotate(-1)
    except (EOFError, ConnectionError):  # the main process is gone
        return
    except MemoryError:
        sys.exit(_NO_MEMORY)


def _give(decoded: DecodedBatch, memory: _Memory, connection: Connection) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(decoded, protocol=5, buffer_callback=buffers.append)
    pieces = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    lengths = [len(piece) for piece in pieces]
    with memory.view(sum(lengths)) as view:
        end = 0
        for piece in pieces:
            view[end : end + len(piece)] = piece
            end += len(piece)
    # Only these few numbers go through the connection: neither side ever waits for room in it while the other does.
    connection.send(lengths)
