"""Work recorded as CUDA graphs: thousands of launches of small kernels become one.

A graph reads and writes the same memory each time. Its random numbers follow ``torch.manual_seed`` all the same: a
replay fills in the seed of the device's default generator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch

Work = Callable[[], None]
Recorder = Callable[[Work], Work]  # runs a piece of work some times and gives what does the same from then on


def graph_recorder(device: torch.device, *, warm_ups: int) -> Recorder | None:
    """Records CUDA graphs, all in one pool of memory, as they run one after the other; None where there are none.

    Args:
        warm_ups: runs before a recording, in which libraries allocate, compile and choose kernels.
    """
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(work: Work) -> Work:
        current = torch.cuda.current_stream(device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(warm_ups):
                work()
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread only: others copy batches meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                work()
        except BaseException:
            _end_recording(device, pool)
            raise
        return graph.replay

    return record


def cause_of(error: BaseException) -> str:
    """Why a recording failed, in one line; the error that ended it hides the first one."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _end_recording(device: torch.device, pool: tuple[int, int]) -> None:
    """Let memory and random numbers be given out again: torch leaves both as they are in a recording that failed."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(RuntimeError):  # it was ended
        torch._C._cuda_endAllocateToPool(index, pool)
    torch.cuda.default_generators[index].graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
