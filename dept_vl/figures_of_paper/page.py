"""What a figure or table consists of on disk: NAME.csv, NAME.md, and NAME.svg or NAME.tex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.sweeping.tables import csv_text
from feature_extraction.durable import write_durably


class Page(NamedTuple):
    """A figure or table with what must be said about it."""

    title: str
    rows: Sequence[Mapping[str, Any]]  # all numbers as they were measured
    table: str  # in Markdown
    notes: Sequence[str]  # what was measured, and how to read it; a sentence or two each
    picture: bytes | None = None  # SVG
    latex: str | None = None
    unfinished: int = 0  # runs that it should be of, but that have failed or are missing


def write_page(folder: Path, name: str, page: Page, *, command: str) -> list[str]:
    """Write all files of a page into the folder; their names come back."""
    lines = [f"# {page.title}", ""]
    lines += [f"![{page.title}]({name}.svg)", ""] if page.picture is not None else []
    lines += [page.table, "", *(f"- {note}" for note in page.notes), "", "```bash", command, "```", ""]
    files = {f"{name}.csv": csv_text(page.rows).encode(), f"{name}.md": "\n".join(lines).encode()}
    files |= {f"{name}.svg": page.picture} if page.picture is not None else {}
    files |= {f"{name}.tex": page.latex.encode()} if page.latex is not None else {}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_durably(folder / file, content)
    return list(files)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    bar = r"\|"
    lines = [f"| {' | '.join(cell.replace('|', bar) for cell in row)} |" for row in [head, *rows]]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])
