"""Whether what is to be written fits on the disk."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from feature_extraction.errors import DiskFullError

MARGIN = 1.1  # of what is needed; other programs write too


def refuse_full_disk(output: Path, needed: int, *, advice: str) -> None:
    """See that so many bytes fit where ``output`` is, or is to be made; those of files already in it count as there.

    Raises:
        DiskFullError: they do not; says how much is needed and free, and gives the advice.
    """
    needed -= sum(file.stat().st_size for file in output.glob("*")) if output.is_dir() else 0
    folder = next(parent for parent in [output, *output.absolute().parents] if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < MARGIN * needed:
        raise DiskFullError(
            errno.ENOSPC,
            f"{output} needs {MARGIN * needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free. Nothing was "
            f"written: free some space, give another --output, or {advice}",
        )
