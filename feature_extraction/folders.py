"""The files of a folder and all that is below it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files, by name; linked folders are followed, but not round in circles.

    Folders that cannot be listed are left out, unless ``on_error`` raises.
    """
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=on_error):
        folders.sort()
        real = os.path.realpath(root)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in sorted(names))
