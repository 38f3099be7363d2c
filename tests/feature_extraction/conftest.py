"""Small images and a random tower of 100,000 parameters."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from feature_extraction import durable
from feature_extraction.settings import ExtractionSettings


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's test_efficientnet, classifier included, as a published file has it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_settings(tiny_weights: Path) -> ExtractionSettings:
    """A tower that takes a millisecond: 2 x 2 visual tokens of width 32."""
    return ExtractionSettings(
        backbone="timm/test_efficientnet",
        weights=str(tiny_weights),
        image_size=32,
        layer=2,
        grid=2,
        batch_size=2,
        shard_size=4,
        workers=0,
    )


@pytest.fixture(scope="session")
def make_images() -> Callable[[Path, int], Path]:
    """Fills a folder with random pictures, equal for equal numbers."""

    def make(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for number in range(count):
            pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"image_{number:03d}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder with their bytes."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Stop(BaseException):
    """The process is gone: no handler of an ordinary exception runs."""


class SystemCalls:
    """``os`` for durable.py, where the write, fsync, replace or rename with number ``at`` meets a fate."""

    COUNTED = ("write", "fsync", "replace", "rename")

    def __init__(self, at: int, fate: Callable[..., Any]) -> None:
        self.count, self._at, self._fate = 0, at, fate

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in self.COUNTED:
            return function

        def call(*arguments: Any) -> Any:
            self.count += 1
            return self._fate(function, *arguments) if self.count == self._at else function(*arguments)

        return call


class Fates:
    """What can happen at a system call. ``at`` makes it happen at one of them, counted from 1."""

    Stop = Stop

    @staticmethod
    @contextmanager
    def at(number: int, fate: Callable[..., Any]) -> Iterator[SystemCalls]:
        """Within the block, the call with this number meets the fate."""
        calls = SystemCalls(number, fate)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "os", calls)
            yield calls

    @staticmethod
    def stop_before(function: Callable[..., Any], *arguments: Any) -> Any:
        """The process ends before the call."""
        raise Stop

    @staticmethod
    def stop_after(function: Callable[..., Any], *arguments: Any) -> Any:
        """The process ends after the call."""
        function(*arguments)
        raise Stop

    @staticmethod
    def stop_within(function: Callable[..., Any], *arguments: Any) -> Any:
        """The process ends with half of the bytes written."""
        if function is os.write:
            descriptor, data = arguments
            function(descriptor, data[: len(data) // 2])
        raise Stop

    @staticmethod
    def disk_full(function: Callable[..., Any], *arguments: Any) -> Any:
        """Half of the bytes fit."""
        if function is os.write:
            descriptor, data = arguments
            function(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def fates() -> Fates:
    """Stops and full disks at any system call that writes a store."""
    return Fates()
