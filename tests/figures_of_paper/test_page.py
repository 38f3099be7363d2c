"""A page's files."""

from __future__ import annotations

import csv
from pathlib import Path

from dept_vl.figures_of_paper.page import Page, markdown_table, write_page

ROWS = [{"m": 0, "time": 0.1 + 0.2}, {"m": 20, "r": 4, "time": None}]


def test_all_files_of_a_page_are_written(tmp_path: Path) -> None:
    page = Page("Title", ROWS, "| m |", ["One note.", "Another."], picture=b"<svg/>", latex="\\begin{table}")
    files = write_page(tmp_path / "new", "fig3", page, command="python -m dept_vl.figures fig3")
    assert sorted(files) == sorted(path.name for path in (tmp_path / "new").iterdir())
    assert sorted(files) == ["fig3.csv", "fig3.md", "fig3.svg", "fig3.tex"]
    text = (tmp_path / "new" / "fig3.md").read_text()
    assert text.startswith("# Title\n\n![Title](fig3.svg)\n\n| m |\n\n- One note.\n- Another.\n")
    assert text.endswith("```bash\npython -m dept_vl.figures fig3\n```\n")
    assert (tmp_path / "new" / "fig3.svg").read_bytes() == b"<svg/>"


def test_what_a_page_does_not_have_is_not_written(tmp_path: Path) -> None:
    assert write_page(tmp_path, "t", Page("T", ROWS, "", []), command="c") == ["t.csv", "t.md"]
    assert "svg" not in (tmp_path / "t.md").read_text()


def test_numbers_in_the_csv_are_exact_and_none_is_empty(tmp_path: Path) -> None:
    write_page(tmp_path, "t", Page("T", ROWS, "", []), command="c")
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["time"]) == 0.1 + 0.2
    assert (first["r"], second["time"], second["r"]) == ("", "", "4")


def test_bars_in_cells_do_not_part_them() -> None:
    assert markdown_table(["a"], [["x|y"]]) == "| a |\n|---|\n| x\\|y |"
