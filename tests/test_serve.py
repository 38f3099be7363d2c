"""The serve command: what it refuses before anything is loaded, and how it fails."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dept_vl.serve import main
from dept_vl.serving.messages import ServiceSettings
from feature_extraction.errors import InputDataError, UsageError


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    (tmp_path / "adapters").mkdir()
    return tmp_path / "adapters"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServiceSettings, str, int]]:
    """What would have been started."""
    pytest.importorskip("litserve", reason="the extra serve is not installed")
    found: list[tuple[ServiceSettings, str, int]] = []

    def run_service(settings: ServiceSettings, *, host: str, port: int) -> None:
        found.append((settings, host, port))

    monkeypatch.setattr("dept_vl.serving.service.run_service", run_service)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_service_listens_on_this_machine_alone_unless_it_is_told(
    adapters: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    main(["--backbone", "t5-mini", "--adapters", str(adapters), "--port", str(port)])
    assert started == [(ServiceSettings(backbone="t5-mini", adapters=adapters), "127.0.0.1", port)]
    assert f"http://127.0.0.1:{port}: POST /predict" in capsys.readouterr().err


def test_options_are_given_in_milliseconds_seconds_and_megabytes(adapters: Path, started: list[Any]) -> None:
    limits = ["--max-batch", "8", "--wait-ms", "2.5", "--timeout", "4", "--max-image-mb", "0.5", "--max-waiting", "9"]
    more = ["--features", "store", "--precision", "bf16", "--host", "0.0.0.0", "--port", str(free_port())]
    main(["--backbone", "t5-mini", "--adapters", str(adapters), *limits, *more])
    assert started[0][0] == ServiceSettings(
        backbone="t5-mini",
        adapters=adapters,
        features=Path("store"),
        precision="bf16",
        max_batch=8,
        wait_seconds=0.0025,
        timeout_seconds=4.0,
        max_image_bytes=500_000,
        most_waiting=9,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-batch", "0"], "--max-batch is 0; it must be at least 1"),
        (["--wait-ms", "-1"], "--wait-ms is -1; it must be at least 0"),
        (["--timeout", "nan"], "--timeout is nan; it must be at least 0.1"),
        (["--max-image-mb", "inf"], "--max-image-mb is inf; it must be at least 0.001"),
        (["--max-waiting", "0"], "--max-waiting is 0; it must be at least 1"),
        (["--wait-ms", "2000", "--timeout", "2"], "--wait-ms is 2000, as long as --timeout (2 s). Lower it"),
        (["--port", "80"], "--port is 80; it must be 1024 to 65535"),
        (["--host", "example.org"], "invalid choice: 'example.org'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(adapters: Path, options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        main(["--backbone", "t5-mini", "--adapters", str(adapters), *options])


def test_a_folder_that_is_none_or_is_an_adapter_itself_is_refused(adapters: Path) -> None:
    with pytest.raises(InputDataError, match=r"nothing is no folder\. Give the one in which adapters or runs lie"):
        main(["--backbone", "t5-mini", "--adapters", str(adapters / "nothing")])
    (adapters / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"adapters is one adapter\. Give the folder that it lies in"):
        main(["--backbone", "t5-mini", "--adapters", str(adapters)])


def test_a_port_that_is_taken_is_refused(adapters: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port {port} on 127.0.0.1 cannot be listened on: Address already in"):
            main(["--backbone", "t5-mini", "--adapters", str(adapters), "--port", str(port)])


def test_missing_packages_are_told_with_how_to_install_them(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litserve" else find(name))
    with pytest.raises(UsageError, match=re.escape('litserve is not installed. Run: pip install "dept_vl[serve]"')):
        main(["--backbone", "t5-mini", "--adapters", str(adapters), "--port", str(free_port())])


def test_what_fails_while_loading_leaves_by_the_common_door(adapters: Path, tmp_path: Path) -> None:
    """In the model's process: this one is told, says it in a line, and has the exit code."""
    pytest.importorskip("litserve", reason="the extra serve is not installed")
    options = ["--backbone", "t5-mini", "--adapters", str(adapters), "--features", str(tmp_path)]
    command = [sys.executable, "-m", "dept_vl.serve", *options, "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path} is no feature store: it has no manifest.json")
    assert "Traceback" not in done.stderr + done.stdout
