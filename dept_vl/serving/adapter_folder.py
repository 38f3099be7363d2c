"""The folder of adapters that a service watches: what is put there is served, what is taken away is not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dept_vl.command_line import exit_code_of, one_line, say
from dept_vl.model.adapter import CONFIG_NAME, TENSORS_NAME
from dept_vl.serving.mixed_model import MixedModel
from feature_extraction.durable import PARTIAL_SUFFIX

LOOK_AGAIN = 5.0  # seconds; what changes inside of adapter folders is found after so long
LOOK_FOR_UNKNOWN = 0.5  # seconds; an adapter that is asked for but not known is looked for no more often
SAME_TIME = 100_000_000  # nanoseconds; more than any file system's clock takes from one time to the next

Signature = tuple[tuple[int, int, int] | None, ...]  # of both files: inode, size and time of change; None: no file


class AdapterFolder:
    """Keeps a model's adapters those of a folder.

    An adapter is a folder in it, or a run whose ``adapter`` it is; of a run of several tasks each is one, named
    RUN/TASK. One that cannot be served is remembered with the reason, and tried again once its files change.
    """

    def __init__(self, path: Path, model: MixedModel) -> None:
        self.path = path
        self.refused: dict[str, str] = {}
        self._model = model
        self._signatures: dict[str, Signature] = {}
        self._changed: int | None = None  # when an entry last came or went, by the file system
        self._looked = 0.0

    def refresh(self, asked: Iterable[str] = ()) -> None:
        """Take in what has changed; ``asked`` are names that are wanted now."""
        now = time.monotonic()
        age = now - self._looked
        unknown = any(name not in self._signatures for name in asked)
        try:
            changed = self.path.stat().st_mtime_ns
            if changed == self._changed and age < LOOK_AGAIN and not (unknown and age > LOOK_FOR_UNKNOWN):
                return
            found = dict(adapter_folders(self.path))
        except OSError as error:
            if age > LOOK_AGAIN:
                say(f"The adapters that are loaded stay as they are: {error}")
                self._looked = now
            return
        # Two changes shortly after each other may bear the same time.
        self._changed = changed if time.time_ns() - changed > SAME_TIME else None
        self._looked = now
        for name in [name for name in self._signatures if name not in found]:
            self._forget(name)
            say(f"Adapter {name}: gone")
        for name, folder in found.items():
            signature = _signature(folder)
            if self._signatures.get(name) != signature:
                self._forget(name)
                self._take(name, folder)
                self._signatures[name] = signature

    def _forget(self, name: str) -> None:
        if name in self._signatures and name not in self.refused:
            self._model.remove(name)
        self.refused.pop(name, None)
        self._signatures.pop(name, None)

    def _take(self, name: str, folder: Path) -> None:
        try:
            self._model.add(name, folder)
        except Exception as error:  # one folder must not stop the others
            known = exit_code_of(error) is not None
            self.refused[name] = one_line(error) if known else f"{type(error).__name__}: {error}"
            say(f"Adapter {name} is not served: {self.refused[name]}")


def adapter_folders(path: Path) -> Iterator[tuple[str, Path]]:
    """The adapters in a folder by name."""
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or entry.name.endswith(PARTIAL_SUFFIX):
            continue
        if (entry / CONFIG_NAME).is_file():
            yield entry.name, entry
        elif (entry / "adapter" / CONFIG_NAME).is_file():
            yield entry.name, entry / "adapter"
        else:
            for config in sorted(entry.glob(f"adapter/*/{CONFIG_NAME}")):
                yield f"{entry.name}/{config.parent.name}", config.parent


def _signature(folder: Path) -> Signature:
    return tuple(_stamp(folder / name) for name in (CONFIG_NAME, TENSORS_NAME))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
