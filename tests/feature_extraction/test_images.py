from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feature_extraction.errors import InputDataError
from feature_extraction.image_sources import list_images
from feature_extraction.images import ImageRejected, decode_image

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
# A smooth picture for lossy formats.
SMOOTH = np.stack([*np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 32)), np.full((32, 48), 99.0)], -1)
SMOOTH = SMOOTH.astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def reason(path: Path) -> str:
    with pytest.raises(ImageRejected) as failure:
        decode_image(path)
    return str(failure.value)


# --- listing


def test_a_folder_is_listed_with_subfolders_sorted_by_id(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.png", "deep/a.v2.JPG", "deep/er/c.webp", "notes.txt", ".hidden.png", "d.tiff"):
        (tmp_path / name).touch()
    assert [(image.image_id, image.path) for image in list_images(tmp_path)] == [
        ("a.v2", tmp_path / "deep/a.v2.JPG"),
        ("b", tmp_path / "b.png"),
        ("c", tmp_path / "deep/er/c.webp"),
        ("d", tmp_path / "d.tiff"),  # of no format that is decoded: it is to end in the list of rejected images
    ]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert [image.image_id for image in list_images(tmp_path / "images")] == ["a"]


def test_a_list_is_relative_to_its_own_folder(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbfx/2.png\r\n\n/abs/1.jpg\n")
    assert list_images(listing) == [("1", Path("/abs/1.jpg"), None), ("2", tmp_path / "x/2.png", None)]


def test_names_that_are_no_utf8_keep_their_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    saved(tmp_path / "plain.png", Image.fromarray(PICTURE)).rename(tmp_path / name)
    (image,) = list_images(tmp_path)
    assert image.image_id == os.fsdecode(b"caf\xe9")
    assert np.array_equal(decode_image(image.path), PICTURE)


def test_two_files_with_one_id_are_refused_and_both_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").touch()
    (tmp_path / "deep" / "a.jpg").touch()
    with pytest.raises(InputDataError, match=r"have the id 'a': .*a\.(png|jpg) and .*a\.(png|jpg)\. .*rename one"):
        list_images(tmp_path)


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\na.png\n")
    with pytest.raises(InputDataError, match="have the id 'a'"):
        list_images(tmp_path / "list.txt")


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No images in .*expected files ending in \.jpg.*--images"):
        list_images(tmp_path)
    (tmp_path / "list.txt").touch()
    with pytest.raises(InputDataError, match=r"No images in .*expected one path a line"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["absent", "file.json"])
def test_a_source_that_is_neither_folder_nor_list_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.json").touch()
    with pytest.raises(InputDataError, match=r"is neither a folder nor a \.txt list"):
        list_images(tmp_path / name)


# --- what pictures become


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    options = {"webp": {"lossless": True}, "gif": {}}.get(suffix, {})
    picture = np.where(PICTURE > 127, 255, 0).astype(np.uint8)  # eight colours, which GIF can hold
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(picture), **options)
    decoded = decode_image(path)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, picture)


def test_the_format_is_told_by_the_content_and_not_by_the_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE)).rename(tmp_path / "a.jpg")
    assert np.array_equal(decode_image(path), PICTURE)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_gives_about_its_pixels(tmp_path: Path, progressive: bool) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(SMOOTH), quality=95, progressive=progressive)
    assert np.abs(decode_image(path).astype(int) - SMOOTH).max() <= 12


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    assert np.abs(decode_image(path).astype(int) - [255, 0, 0]).max() <= 5


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (200, 10, 20, 255), (200, 10, 20)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # a plain conversion would show the hidden red
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ],
)
def test_grey_and_transparency_become_rgb_on_white(
    tmp_path: Path, mode: str, colour: Any, expected: tuple[int, int, int]
) -> None:
    path = saved(tmp_path / "a.png", Image.new(mode, (3, 2), colour))
    assert np.array_equal(decode_image(path), np.broadcast_to(np.array(expected, np.uint8), (2, 3, 3)))


def test_a_palette_becomes_its_colours_and_its_transparent_entry_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode_image(saved(tmp_path / "a.png", image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode_image(saved(tmp_path / "b.png", image, transparency=1)).tolist() == [[[10, 20, 30], [255] * 3]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode_image(saved(tmp_path / "a.png", Image.fromarray(ramp)))
    assert np.abs(decoded[..., 0] / 255 - ramp / 65535).max() <= 1 / 255
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_sixteen_bit_colour_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    samples = RANDOM.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.abs(decode_image(path) / 255 - samples / 65535).max() <= 1 / 255


# What turns an upright picture into one that is stored for each EXIF orientation.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PICTURE)))
    assert np.array_equal(decode_image(saved(tmp_path / "a.png", stored, exif=exif)), PICTURE)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_senseless_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(saved(tmp_path / "a.png", Image.fromarray(PICTURE), exif=exif)), PICTURE)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0junkjunkjunk"])
def test_damaged_metadata_do_not_cost_the_picture(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(SMOOTH), quality=95, exif=exif)
    assert np.abs(decode_image(path).astype(int) - SMOOTH).max() <= 12


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_give_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode_image(path), np.array(frames[0]))


def test_a_picture_of_several_shots_gives_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decode_image(path).astype(int) - [255, 0, 0]).max() <= 5


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_odd_shapes_are_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    assert decode_image(saved(tmp_path / "a.png", Image.new("RGB", size))).shape == (size[1], size[0], 3)


# --- what is rejected


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_file_is_rejected_and_named_with_its_size(tmp_path: Path, suffix: str, share: float) -> None:
    noise = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path / f"whole.{suffix}", noise).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert f"{path} ({path.stat().st_size:,} bytes): " in reason(path)


def test_a_flipped_bit_in_a_png_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)
    assert "damaged or truncated (" in reason(path)


def test_an_empty_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.touch()
    assert reason(path) == f"{path} (0 bytes): the file is empty"


def test_a_header_alone_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(SMOOTH))
    path.write_bytes(path.read_bytes()[:2])
    assert reason(path).endswith("it starts with the bytes ff d8")


@pytest.mark.parametrize("kind", ["tiff", "ppm", "text"])
def test_other_formats_are_rejected_whatever_their_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    buffer = io.BytesIO(b"an image, honestly")
    if kind != "text":
        Image.fromarray(PICTURE).save(buffer, format=kind)
    path.write_bytes(buffer.getvalue())
    start = buffer.getvalue()[:8].hex(" ")
    assert f"none of the formats JPEG, PNG, WEBP, GIF, BMP: it starts with the bytes {start}" in reason(path)


def bomb(path: Path, side: int) -> Path:
    """A PNG whose header promises side x side pixels and holds almost none."""
    data = bytearray(saved(path, Image.new("1", (8, 8))).read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


def test_too_many_pixels_are_rejected_by_the_header(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.png", 8100)
    assert "8100 x 8100 = 66 megapixels; at most 64 are decoded" in reason(path)


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_decompression_bombs_are_rejected(tmp_path: Path, side: int) -> None:
    assert "more than 64 megapixels: Image size (" in reason(bomb(tmp_path / "a.png", side))


def test_what_is_no_regular_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason(tmp_path / "pipe.jpg") == f"{tmp_path / 'pipe.jpg'}: not a regular file"
    assert reason(tmp_path / "folder.jpg") == f"{tmp_path / 'folder.jpg'}: not a regular file"
    assert reason(tmp_path / "absent.jpg") == f"{tmp_path / 'absent.jpg'}: no such file"
    assert reason(tmp_path / "loop.jpg") == f"{tmp_path / 'loop.jpg'}: no such file"


def test_a_file_that_vanishes_while_it_is_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE))

    def vanish(*arguments: object, **options: object) -> None:
        path.unlink()
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Image, "open", vanish)
    assert "(gone while it was read): cannot be read (No such file or directory)" in reason(path)


def test_running_out_of_memory_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE))

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode_image(path)
