"""Files that are either wholly there or not there at all, wherever a process is stopped.

The order is: temporary name in the same folder, write, fsync, rename, fsync of the folder. All writes of the feature
store and of the checkpoints go through this file.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from feature_extraction.errors import DiskFullError

PARTIAL_SUFFIX = ".partial"  # anything that ends so is left from a stopped process and may be deleted


def write_durably(path: Path, data: bytes) -> str:
    """Write ``data`` to ``path``, replacing it in one step, and return the SHA-256 of the data as hexadecimal text.

    Raises:
        DiskFullError: no space or quota is left; the former content of ``path`` is untouched.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        _write_and_sync(partial, data, os.O_TRUNC)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _explained(error, path, len(data)) from error
    os.replace(partial, path)
    sync_directory(path.parent)
    return hashlib.sha256(data).hexdigest()


def append_durably(path: Path, data: bytes) -> None:
    """Append ``data`` to ``path``; a stopped process may leave a first part of it, which readers must ignore.

    Raises:
        DiskFullError: no space or quota is left; the file is cut back to its former length.
    """
    length = path.stat().st_size if path.exists() else 0
    try:
        _write_and_sync(path, data, os.O_APPEND)
    except OSError as error:
        if path.exists():
            os.truncate(path, length)
        raise _explained(error, path, len(data)) from error


def commit_directory(partial: Path, final: Path) -> None:
    """Rename a finished folder to its final name, in one step."""
    sync_directory(partial)
    os.rename(partial, final)
    sync_directory(final.parent)


def sync_directory(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as hexadecimal text, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_and_sync(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, path: Path, size: int) -> OSError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return DiskFullError(
        error.errno,
        f"Disk full writing {path} ({size:,} bytes needed). Nothing written before is lost: "
        "free some space and run the same command again",
    )
