"""log.jsonl: one JSON line for each window of steps and for each validation, cut back when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_extraction.durable import write_durably

MEASURED = ("seconds", "peak_memory_bytes")  # what differs between the logs of equal runs


class LossLog:
    """Appends records to log.jsonl. Every record has a ``step``."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open the log and drop all that was written after ``resume_step``, or only in part."""
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resume_step]
        write_durably(path, b"".join(kept))
        self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it survives a killed process from now on."""
        self._file.write((json.dumps(record) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole records of a log."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
