from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dept_vl.bench.feature_store import main
from feature_extraction.errors import UsageError


def test_all_layouts_are_read_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    main(["--images", "3", "--reads", "5", "--folder", str(tmp_path)])
    heading, ours, *theirs = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["layout", "images/CPU-s", "images/s"]
    assert ours.split()[-2:] == ["1.0", "times"]
    names = [line[:18].strip() for line in theirs]
    assert names == ["VL-T5 HDF5 float32", "VL-T5 HDF5 float16", "VL-Adapter HDF5"]
    assert list(tmp_path.iterdir()) == []


def test_without_h5py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r"needs h5py\. Run: pip install 'dept_vl\[import\]'"):
        main([])
