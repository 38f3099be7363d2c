"""The fixed batches of a store's shards, decoded and resized by worker processes. Imports no torch."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from typing import NamedTuple

from feature_extraction.images import ImageFile, ImageRejected
from feature_extraction.inputs import Inputs, Preparation
from feature_extraction.store_layout import Rejected
from feature_extraction.store_writer import StoreWriter


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


def plan_batches(images: Sequence[ImageFile], writer: StoreWriter, batch_size: int) -> list[Batch]:
    """The batches of all missing shards; what a batch holds does not depend on what else is missing."""
    return [
        Batch(number, start + batch_size >= len(rows), images[rows.start : rows.stop][start : start + batch_size])
        for number in writer.missing
        for rows in [writer.rows(number)]
        for start in range(0, len(rows), batch_size)
    ]


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
    batches: Sequence[Batch], preparation: Preparation, *, workers: int
) -> Generator[DecodedBatch, None, None]:
    """The batches in their order; with ``workers`` 0 decoded in this process. Close it to end the workers.

    Raises:
        MemoryError: the system killed a worker.
        RuntimeError: a worker failed.
    """
    if workers == 0:
        for batch in batches:
            yield decode_batch(batch, preparation)
        return
    # Worker w decodes the batches w, w + workers, …; it waits in its pipe until its next one is asked for.
    receivers: list[Connection] = []
    processes: list[Process] = []
    try:
        for worker in range(min(workers, len(batches))):
            receiver, sender = Pipe(duplex=False)
            part = batches[worker::workers]
            process = Process(target=_work, args=(part, preparation, receiver, sender), daemon=True)
            process.start()
            sender.close()  # likewise the worker's copy
            receivers.append(receiver)
            processes.append(process)
        for number in range(len(batches)):
            worker = number % workers
            try:
                decoded: DecodedBatch = receivers[worker].recv()
            except (EOFError, ConnectionError) as error:
                raise _failure(processes[worker]) from error
            yield decoded
    finally:
        for process, receiver in zip(processes, receivers, strict=True):
            process.kill()
            process.join()
            receiver.close()


def _work(batches: Sequence[Batch], preparation: Preparation, receiver: Connection, sender: Connection) -> None:
    receiver.close()  # the main process's copy is the only one now, so that its death ends the pipe
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    try:
        for batch in batches:
            sender.send(decode_batch(batch, preparation))
    except BrokenPipeError:  # the main process is gone
        return


def _failure(process: Process) -> Exception:
    process.join()
    if process.exitcode is not None and process.exitcode < 0:
        return MemoryError(
            f"A decoding process was killed by {signal.Signals(-process.exitcode).name}, as systems do when memory "
            "runs out. The finished shards stay: run the same command again with a lower features.workers"
        )
    return RuntimeError(f"A decoding process failed with exit code {process.exitcode}; its traceback stands above")
