"""The peak of a process's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dept_vl import memory
from dept_vl.memory import STATUS, peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not STATUS.exists(), reason="Linux only")
def test_it_grows_with_what_is_held_and_does_not_shrink() -> None:
    before = peak_memory(CPU)
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    missing = before - int(fields["VmRSS"].split()[0]) * 1024  # to the former peak
    more = 64 * 2**20
    held = torch.ones((missing + more) // 4)
    grown = peak_memory(CPU)
    assert grown - before == pytest.approx(more, rel=0.5)
    del held
    assert peak_memory(CPU) == pytest.approx(grown, rel=0.01)  # Linux counts in batches


def test_elsewhere_the_system_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = peak_memory(CPU)
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert peak_memory(CPU) > expected / 4


def test_of_a_gpu_it_is_what_torch_has_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    assert peak_memory(torch.device("cuda")) == 123
