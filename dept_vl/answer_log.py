"""Answers that an evaluation has given so far, on disk, so that a stopped one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_extraction.durable import append_durably, write_durably

COLLECTED = "collected.jsonl"


class AnswerLog:
    """A folder with a file for each process, whose lines are ``[example id, answer]``.

    The first line of a file says whose answers they are. Those of another model, other settings or other questions
    are not read but deleted.
    """

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], rank: int) -> None:
        self._folder = folder
        self._head = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._path = folder / f"process-{rank}.jsonl"

    def collect(self) -> None:
        """Gather the answers of all processes of a stopped evaluation in one file; for the first process only.

        All others call ``read`` after that, and ``append`` after everybody has read.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(self._folder.glob("*.jsonl"))
        answers = {}
        for path in paths:
            answers.update(self._read(path))
        collected = self._folder / COLLECTED
        write_durably(collected, self._lines(answers, head=True))
        for path in set(paths) - {collected}:  # only now: what is removed has its answers elsewhere
            path.unlink()

    def read(self) -> dict[str, str]:
        """The answers that were collected."""
        return self._read(self._folder / COLLECTED)

    def append(self, answers: Mapping[str, str]) -> None:
        """Add this process's answers to a batch; they survive a killed process from now on."""
        append_durably(self._path, self._lines(answers, head=not self._path.exists()))

    def delete(self) -> None:
        """Remove all of it, once the answers are where they belong."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _lines(self, answers: Mapping[str, str], *, head: bool) -> bytes:
        lines = [json.dumps(item) + "\n" for item in answers.items()]
        return "".join([json.dumps(self._head) + "\n", *lines] if head else lines).encode()

    def _read(self, path: Path) -> dict[str, str]:
        lines = path.read_bytes().splitlines(keepends=True)
        if not lines or lines[0] != (json.dumps(self._head) + "\n").encode():
            return {}
        # A killed process may leave its last line unfinished.
        return dict(json.loads(line) for line in lines[1:] if line.endswith(b"\n"))
