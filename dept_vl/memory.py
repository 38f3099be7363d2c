"""How much memory this process has needed at most."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")  # of Linux


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU what torch has allocated at most; else the process's largest resident set.

    The resident set has mapped files in it, such as weights and the features that were read.
    """
    if device.type == "cuda":
        from torch import cuda

        return cuda.max_memory_allocated(device)
    if STATUS.exists():
        # Not getrusage here: a process inherits that maximum from the one that started it.
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].removesuffix("kB")) * 1024
    import resource

    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum if sys.platform == "darwin" else maximum * 1024  # kilobytes everywhere else
