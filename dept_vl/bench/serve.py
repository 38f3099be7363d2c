"""A running service under load, on this machine: ``python -m dept_vl.bench serve --help``."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from dept_vl.model.adapter import Adapter, adapter_identity, save_adapter, trained_tensors
from dept_vl.model.backbone import load_backbone
from dept_vl.model.build import build_model
from dept_vl.serving.client import Client, ServiceError
from dept_vl.serving.load_test import LoadFigures, LoadRequest, load_test
from dept_vl.settings import BackboneSettings, MethodSettings, Settings, TaskSettings
from feature_extraction.errors import InputDataError

TEXT = "how many of these {} words does the adapter with the number {} read ?"
SECONDS_TO_START = 300.0


def serve_figures(*, backbone: str, adapters: int, requests: int, concurrency: int, max_batch: int) -> LoadFigures:
    """Start a service with random adapters, ask it, and stop it.

    Raises:
        InputDataError: the service did not start.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_adapters(folder / "adapters", backbone, adapters)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "dept_vl.serve",
            "--backbone",
            backbone,
            "--adapters",
            str(folder / "adapters"),
        ]
        command += ["--port", str(port), "--max-batch", str(max_batch)]
        log = folder / "service.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)  # noqa: S603 - our own command
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            asked = [
                LoadRequest(f"adapter-{number % adapters}", TEXT.format(number % 7, number))
                for number in range(requests)
            ]
            return load_test(url, asked, concurrency=concurrency)
        finally:
            process.terminate()
            process.wait()


def write_adapters(folder: Path, backbone_name: str, count: int) -> None:
    """Adapters of random contents, of prompts of four lengths."""
    backbone = load_backbone(BackboneSettings(name=backbone_name))
    settings = Settings(
        backbone=BackboneSettings(name=backbone_name),
        tasks={"sst2": TaskSettings("sst2", "glue", max_text_length=64, max_target_length=8, images_per_example=0)},
    )
    for number in range(count):
        method = MethodSettings(prompt_length=(10, 20, 40, 60)[number % 4])
        own = replace(settings, method=method)
        built = build_model(own, backbone, visual_tokens=0, feature_width=0, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for group in built.groups:
                for value in group.parameters.values():
                    value.copy_(torch.randn(value.shape, generator=generator))
        identity = adapter_identity(backbone, task="sst2", method="dept", features={})
        save_adapter(
            folder / f"adapter-{number}", Adapter(identity, asdict(own), trained_tensors(built.model, built.groups))
        )


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < end:
        try:
            with Client(url) as client:
                if client.text("/health") == "ok":
                    return
        except (ServiceError, OSError):
            pass
        time.sleep(0.2)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise InputDataError(f"The service did not start: {last}. Try it by itself: python -m dept_vl.serve --help")
