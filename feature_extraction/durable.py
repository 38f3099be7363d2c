"""Files that are either wholly there or not there at all, wherever a process is stopped.

The order is: temporary name in the same folder, write, fsync, rename, fsync of the folder. All writes of the feature
store and of the checkpoints go through this file.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from feature_extraction.errors import DiskFullError

PARTIAL_SUFFIX = ".partial"  # anything that ends so is left from a stopped process and may be deleted


def write_durably(path: Path, data: bytes, *, writer: str = "") -> str:
    """Write ``data`` to ``path``, replacing it in one step, and return the SHA-256 of the data as hexadecimal text.

    Args:
        path: the file.
        data: its contents.
        writer: a part of the temporary name, of its own for each of several processes that may write the same file.

    Raises:
        DiskFullError: no space or quota is left; the former content of ``path`` is untouched.
    """
    partial = path.with_name(f"{path.name}.{writer}{PARTIAL_SUFFIX}" if writer else f"{path.name}{PARTIAL_SUFFIX}")
    try:
        _write_and_sync(partial, data, os.O_TRUNC)
        os.replace(partial, path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(partial)
        _explain_full_disk(error, path, len(data))
        raise
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
        _explain_full_disk(error, path, len(data))
        raise


def create_exclusively(path: Path, data: bytes) -> bool:
    """Create a file, unless there is one of this name; whether this call did it.

    Of several processes one creates it, also of several machines on a network file system. Others may see the file
    before its contents, and a stopped process may leave a first part of them.

    Raises:
        DiskFullError: no space or quota is left; there is no file.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        _explain_full_disk(error, path, len(data))
        raise
    try:
        _write_and_close(descriptor, data)
    except OSError as error:
        remove(path)
        _explain_full_disk(error, path, len(data))
        raise
    return True


def remove(path: Path) -> None:
    """Delete a file, unless it is gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)


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
    _write_and_close(os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644), data)


def _write_and_close(descriptor: int, data: bytes) -> None:
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain_full_disk(error: OSError, path: Path, size: int) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(
            error.errno,
            f"Disk full writing {path} ({size:,} bytes needed). Nothing written before is lost: "
            "free some space and run the same command again",
        ) from error
