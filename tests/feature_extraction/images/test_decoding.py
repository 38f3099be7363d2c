"""What decoding makes of good images, and its rules; what it makes of bad ones stands in test_nasty_images.py."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFile

from feature_extraction.errors import UsageError
from feature_extraction.images import decoding as images
from feature_extraction.images.decoding import Decoding, ImageRejected, decode_image, read_image

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
# A smooth picture for lossy formats.
SMOOTH = np.stack([*np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 32)), np.full((32, 48), 99.0)], -1)
SMOOTH = SMOOTH.astype(np.uint8)
TIFF = Decoding(tiff=True)


def saved(path: Path, image: np.ndarray | Image.Image, **options: Any) -> Path:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def reason(path: Path, rules: Decoding = images.DEFAULT_DECODING) -> str:
    with pytest.raises(ImageRejected) as failure:
        decode_image(path, rules)
    return str(failure.value)


# --- pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    picture = np.where(PICTURE > 127, 255, 0).astype(np.uint8)  # eight colours, which GIF can hold
    decoded = decode_image(saved(tmp_path / f"a.{suffix}", picture, **options))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    assert np.array_equal(decoded, picture)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_gives_about_its_pixels(tmp_path: Path, progressive: bool) -> None:
    path = saved(tmp_path / "a.jpg", SMOOTH, quality=95, progressive=progressive)
    assert np.abs(decode_image(path).astype(int) - SMOOTH).max() <= 12


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode_image(saved(tmp_path / "a.png", ramp))
    assert np.abs(decoded / 255 - ramp[..., None] / 65535).max() <= 0.5 / 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_strips_of_a_large_image_join_without_a_seam(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = RANDOM.integers(0, 256, (37, 5, 4), dtype=np.uint8)
    grey16 = Image.fromarray(RANDOM.integers(0, 65536, (37, 5), dtype=np.uint16))
    path = saved(tmp_path / "a.png", grey16 if mode == "I;16" else Image.fromarray(samples).convert(mode))
    whole = decode_image(path)
    for pixels in (1, 5, 49, 50, 37 * 5 - 1):
        monkeypatch.setattr(images, "_STRIP", pixels)
        assert np.array_equal(decode_image(path), whole)


def test_a_turned_photo_is_about_the_upright_one(tmp_path: Path) -> None:
    upright = decode_image(saved(tmp_path / "upright.jpg", SMOOTH, quality=95)).astype(float).ravel()
    stored = np.ascontiguousarray(np.rot90(SMOOTH))
    found = decode_image(saved(tmp_path / "turned.jpg", stored, quality=95, exif=turned(6))).astype(float).ravel()
    assert upright @ found / np.linalg.norm(upright) / np.linalg.norm(found) >= 0.999


# --- rules


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_unless_they_are_to_stay_as_stored(tmp_path: Path, suffix: str, orientation: int) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    stored = Image.fromarray(PICTURE)
    path = saved(tmp_path / f"a.{suffix}", stored, exif=turned(orientation), **options)
    assert np.array_equal(decode_image(path, Decoding(exif=False, tiff=True)), PICTURE)
    upright = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.swapaxes(0, 1),
        6: np.rot90(PICTURE, -1),
        7: PICTURE[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PICTURE),
    }
    decoded = decode_image(path, TIFF)
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, upright[orientation])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_tiff_is_decoded_where_it_is_asked_for(tmp_path: Path, compression: str | None) -> None:
    path = saved(tmp_path / "a.jpg", PICTURE, format="tiff", compression=compression)
    assert np.array_equal(decode_image(path, TIFF), PICTURE)
    assert reason(path).endswith(f"a.jpg ({path.stat().st_size:,} bytes): it is a TIFF; features.tiff=true decodes it")


def test_tiff_of_deep_grey_is_scaled_and_of_premultiplied_alpha_composited(tmp_path: Path) -> None:
    grey = saved(tmp_path / "grey.tiff", RANDOM.integers(0, 65536, (6, 8), dtype=np.uint16))
    assert np.array_equal(decode_image(grey, TIFF)[..., 0], (np.array(Image.open(grey)) / 257).round())
    alpha = saved(tmp_path / "alpha.tiff", Image.new("RGBA", (3, 2), (40, 40, 40, 51)))
    assert (decode_image(alpha, TIFF) == 204 + 8).all()
    kind = struct.pack("<HHI", 338, 3, 1)  # the tag that says how the fourth sample is meant
    alpha.write_bytes(alpha.read_bytes().replace(kind + b"\2", kind + b"\1"))
    assert (decode_image(alpha, TIFF) == 204 + 40).all()


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_samples_without_a_known_range_are_rejected(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.tiff", Image.new(mode, (3, 2)))
    assert reason(path, TIFF).endswith(
        f"its samples are of the kind {mode}; what is black and what is white is not known"
    )


def test_other_formats_are_named_with_what_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ppm", PICTURE)
    assert "none of the formats JPEG, PNG, WEBP, GIF, BMP: it starts with the bytes 50 36 0a" in reason(path)
    assert "none of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF: it starts with" in reason(path, TIFF)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_the_limit_of_pixels_is_ours_and_not_the_process_s(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / f"a.{suffix}", PICTURE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)  # Pillow would warn
    assert decode_image(path, Decoding(tiff=True, max_pixels=48)).shape == PICTURE.shape
    assert Image.MAX_IMAGE_PIXELS == 47
    assert reason(path, Decoding(tiff=True, max_pixels=47)).endswith(
        "8 x 6 = 0.0 megapixels; features.max_pixels is 47"
    )


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff"])
def test_what_pillow_itself_refuses_is_said_to_be_its_limit(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    Image.fromarray(PICTURE).save(data, format=suffix)
    if suffix == "gif":  # which is checked only where a frame is larger than the whole
        data = io.BytesIO(data.getvalue()[:6] + b"\1\0\1\0" + data.getvalue()[10:])
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # more than twice as many are an error of Pillow's
    assert "more pixels than Pillow decodes of this format, whatever features.max_pixels is (Image size (" in reason(
        path, TIFF
    )


def test_a_pillow_that_takes_truncated_images_for_whole_ones_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.jpg", SMOOTH)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match=r"LOAD_TRUNCATED_IMAGES is set, so .* grey without a word\. Leave it False"):
        decode_image(path)


def test_no_source_sets_a_global_of_pillow() -> None:
    for path in Path(images.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "LOAD_TRUNCATED_IMAGES =" not in text, path
        assert "MAX_IMAGE_PIXELS =" not in text, path


# --- where the bytes are


class Cut(NamedTuple):
    """A part of a file."""

    name: str
    size: int

    def read(self, path: Path) -> bytes:
        return path.read_bytes()[: self.size]


def test_an_image_may_be_a_part_of_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PICTURE)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    whole = images.ImageFile("a", path, Cut("first", size))
    assert whole.name == f"{path}: first"
    assert np.array_equal(decode_image(whole), PICTURE)
    with pytest.raises(ImageRejected, match=r"a\.png: first \(40 bytes\): damaged or truncated"):
        decode_image(whole._replace(part=Cut("first", 40)))


def test_what_is_no_regular_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "pipe.jpg") == f"{tmp_path / 'pipe.jpg'}: not a regular file"
    assert reason(tmp_path / "folder.jpg") == f"{tmp_path / 'folder.jpg'}: not a regular file"
    assert reason(tmp_path / "absent.jpg") == f"{tmp_path / 'absent.jpg'}: no such file"
    assert reason(tmp_path / "nul\0.jpg").endswith(": no such file")
    assert reason(tmp_path / f"{'x' * 300}.jpg").endswith(": cannot be read (File name too long)")


def test_a_file_that_vanishes_while_it_is_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", PICTURE)

    def vanish(path: Path) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_bytes", vanish)
    assert reason(path) == f"{path}: cannot be read (No such file or directory)"


def test_a_file_too_large_for_any_image_is_rejected_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.webp"
    with path.open("wb") as file:
        file.truncate(images.LARGEST_FILE + 1)  # takes no room on disk
    monkeypatch.setattr(Path, "read_bytes", None)
    assert reason(path) == f"{path}: 400,000,001 bytes; of an image at most 400,000,000 are read"


def test_running_out_of_memory_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", PICTURE)

    def fail(path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MemoryError):
        decode_image(path)


def test_an_image_is_read_as_it_is_stored(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PICTURE)
    assert read_image(images.ImageFile("a", path)) == path.read_bytes()


def test_threads_may_decode_beside_each_other(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{number}.png", np.full((50, 50, 3), number, np.uint8)) for number in range(8)]
    found: dict[int, int] = {}

    def decode(number: int) -> None:
        for _ in range(20):
            found[number] = int(decode_image(paths[number]).max())

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number for number in range(8)}


# --- memory

PEAK = """
import resource, sys
from pathlib import Path
from feature_extraction.images.decoding import decode_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for path in sys.argv[1:]:
    decode_image(Path(path))
print(peak() - before)
"""


def peak_of_decoding(folder: Path, side: int) -> int:
    """The bytes that a process needs at most to decode a square image of each demanding kind."""
    smooth = Image.linear_gradient("L").resize((side, side))
    colour = Image.merge("RGB", [smooth, smooth.transpose(Image.Transpose.ROTATE_90), smooth])
    alpha = colour.copy()
    alpha.putalpha(smooth)
    paths = [
        saved(folder / "plain.jpg", colour),
        saved(folder / "turned.jpg", colour, exif=turned(6), progressive=True),
        saved(folder / "alpha.png", alpha, compress_level=1),
        saved(folder / "alpha.webp", alpha, lossless=True, method=0),
        saved(folder / "grey16.png", np.asarray(smooth).astype(np.uint16) * 257, compress_level=1),
        saved(folder / "palette.gif", smooth.convert("P")),
    ]
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_sixteen_megapixels_need_less_than_400_megabytes(tmp_path: Path) -> None:
    assert peak_of_decoding(tmp_path, 4000) <= 1.5e9 * 16 / 64 + 25e6


@pytest.mark.slow
def test_sixty_four_megapixels_need_less_than_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    assert peak_of_decoding(tmp_path, 8000) <= 1.5e9 - 100e6  # which the process itself may need
