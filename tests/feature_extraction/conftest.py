"""Small images and a random tower of 100,000 parameters."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from feature_extraction import durable
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import Manifest, Rejected, plan, seal, unseal
from feature_extraction.store.writer import StoreWriter


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


class SmallStore:
    """A store of ten images in three shards; image 6, in the second, is rejected."""

    IDS = tuple(f"image {number}" for number in range(10))
    REJECTED = Rejected("image 6", "6.png", "6.png (0 bytes): the file is empty")
    IDENTITY: ClassVar[dict[str, Any]] = {
        "backbone": "tiny",
        "weight_digest": "0" * 64,
        "visual_tokens": 3,
        "feature_width": 5,
        "dtype": "float16",
    }
    SETTINGS = ExtractionSettings(backbone="tiny", shard_size=4)
    FEATURES = np.random.default_rng(0).standard_normal((10, 3, 5)).astype(np.float16)
    BOXES = np.random.default_rng(1).random((10, 3, 4), dtype=np.float32)

    def manifest(
        self, ids: Sequence[str] = IDS, identity: dict[str, Any] = IDENTITY, source: str = "photos", **changes: Any
    ) -> Manifest:
        """The plan of the store, or of one with other ids, identity or settings."""
        return plan(ids, replace(self.SETTINGS, **changes), identity, source=[source])

    def images(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of some images."""
        return {"features": self.FEATURES[list(rows)], "boxes": self.BOXES[list(rows)]}

    def write_shard(self, writer: StoreWriter, number: int) -> None:
        """Commit a shard."""
        rows = [row for row in writer.rows(number) if self.IDS[row] != self.REJECTED.image_id]
        rejected = [self.REJECTED] if len(rows) < len(writer.rows(number)) else []
        writer.write(number, [self.IDS[row] for row in rows], self.images(rows), rejected)

    def write(self, path: Path, *, writer: StoreWriter | None = None, **changes: Any) -> Path:
        """Write what is missing of the store, without claims, and finish it."""
        writer = writer or StoreWriter(path, self.manifest(**changes))
        for number in writer.missing:
            self.write_shard(writer, number)
        writer.finish()
        return path

    def share(self, path: Path, **changes: Any) -> list[int]:
        """Write those shards that no other process is at, finish if nothing is missing, and say which they were."""
        written = []
        with StoreWriter(path, self.manifest(**changes)) as writer:
            while (number := writer.claim(writer.missing)) is not None:
                self.write_shard(writer, number)
                written.append(number)
            if not writer.missing:
                writer.finish()
        return written


@pytest.fixture(scope="session")
def small() -> SmallStore:
    """What the store of ten images holds, and how it is written."""
    return SmallStore()


@pytest.fixture
def store(small: SmallStore, tmp_path: Path) -> Path:
    """The store of ten images, finished."""
    return small.write(tmp_path / "store")


class Stop(BaseException):
    """The process is gone: no handler of an ordinary exception runs."""


class SystemCalls:
    """``os`` for durable.py, where call ``at`` to write, fsync, replace, rename or unlink has a fate; None: all do."""

    COUNTED = ("write", "fsync", "replace", "rename", "unlink")

    def __init__(self, at: int | None, fate: Callable[..., Any]) -> None:
        self.count, self._at, self._fate = 0, at, fate
        self.function: Callable[..., Any] | None = None  # that met the fate

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in self.COUNTED:
            return function

        def call(*arguments: Any) -> Any:
            self.count += 1
            if self._at not in (None, self.count):
                return function(*arguments)
            self.function = function
            return self._fate(function, *arguments)

        return call


class Fates:
    """What can happen at a system call. ``at`` makes it happen at one of them, counted from 1, or at all."""

    Stop = Stop

    @staticmethod
    @contextmanager
    def at(number: int | None, fate: Callable[..., Any]) -> Iterator[SystemCalls]:
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
        with suppress(OSError):
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


@pytest.fixture(scope="session")
def reseal() -> Callable[..., None]:
    """Changes entries of a sealed record, so that its digest fits."""

    def change(path: Path, **entries: object) -> None:
        record = unseal(path.read_bytes())
        assert record is not None
        path.write_bytes(seal({**record, **entries}))

    return change
