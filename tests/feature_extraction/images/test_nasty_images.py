"""Every kind of bad luck that a folder of images can hold, made in code, with what is to come of it."""

from __future__ import annotations

import io
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from feature_extraction.images.batches import DecodedBatch, decode_batch, shard_batches
from feature_extraction.images.decoding import ImageFile, ImageRejected, decode_image
from feature_extraction.images.inputs import Preparation
from feature_extraction.images.preprocessing import Preprocessing
from feature_extraction.images.sources import list_images

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
COLOUR = (10, 60, 200)
PLAIN = np.full((24, 32, 3), COLOUR, dtype=np.uint8)  # survives lossy formats
NOISE = RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)
DAMAGED = r"damaged or truncated \("


class Good(NamedTuple):
    pixels: np.ndarray
    off_by: int = 0  # at most, of 255


class Bad(NamedTuple):
    reason: str


class Nasty(NamedTuple):
    name: str
    make: bytes | Callable[[Path], object]
    outcome: Good | Bad


def encoded(picture: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def exif(orientation: int, *, more: bytes = b"") -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    if more:
        found[0x010E] = more  # a description
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, colour_type: int, *more: bytes) -> bytes:
    """A PNG of 16 bits a sample."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels and holds almost none."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "png"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def frame_header(data: bytes) -> int:
    """Where the frame header (SOF0) of a JPEG begins."""
    return data.index(b"\xff\xc0\x00")


def without_adobe_marker(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def with_adobe_transform(data: bytes, transform: int) -> bytes:
    return replaced(data, data.index(b"Adobe") + 11, bytes([transform]))


def long_gif(frames: int) -> bytes:
    """A GIF of so many frames, all but the first of which are junk inside."""
    one = encoded(Image.new("P", (4, 4)), "gif")
    return one[:-1] + b",\0\0\0\0\4\0\4\0\0\2\1\xff\0" * (frames - 1) + b";"


def stored_for(orientation: int) -> np.ndarray:
    """The picture as it is stored with this orientation."""
    turned = {
        5: PICTURE.swapaxes(0, 1),
        6: np.rot90(PICTURE),
        7: PICTURE[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PICTURE, 3),
    }
    flipped = {1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1]}
    return np.ascontiguousarray({**turned, **flipped}.get(orientation, PICTURE))


def palette(*, transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    return encoded(image, "png", **({"transparency": 1} if transparent else {}))


def long_text(*, compressed: bool) -> bytes:
    text = PngInfo()
    text.add_text("comment", "x" * 10_000_000, zip=compressed)
    return encoded(PICTURE, "png", pnginfo=text)


JPEG, PNG = encoded(NOISE, "jpeg", quality=95), encoded(NOISE, "png")
PLAIN_JPEG = encoded(PLAIN, "jpeg", quality=95)
CMYK = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpeg", quality=95)
DEEP = RANDOM.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
RED = np.full((16, 16, 3), (255, 0, 0), dtype=np.uint8)
WHITE = np.full((2, 3, 3), 255, dtype=np.uint8)
FRAMES = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]


def flat(*colour: int) -> Good:
    return Good(np.full((2, 3, 3), colour, dtype=np.uint8))


def image_of(mode: str, colour: Any) -> bytes:
    return encoded(Image.new(mode, (3, 2), colour), "png")


CORPUS = [
    # --- not whole
    Nasty("empty.jpg", b"", Bad(r" \(0 bytes\): the file is empty")),
    Nasty("one_byte.jpg", b"\xff", Bad("starts with the bytes ff$")),
    Nasty("two_bytes.jpg", JPEG[:2], Bad("starts with the bytes ff d8$")),
    Nasty("jpeg_header_only.jpg", JPEG[: JPEG.index(b"\xff\xda")], Bad(DAMAGED)),
    Nasty("png_header_only.png", PNG[:8], Bad(DAMAGED)),
    Nasty("png_sizes_only.png", PNG[:33], Bad(DAMAGED)),
    *(Nasty(f"jpeg_cut_{share}.jpg", cut(JPEG, share), Bad(DAMAGED)) for share in (0.02, 0.3, 0.5, 0.9, 0.999)),
    *(Nasty(f"png_cut_{share}.png", cut(PNG, share), Bad(DAMAGED)) for share in (0.02, 0.3, 0.5, 0.9)),
    *(
        Nasty(f"{kind}_cut_{share}.{kind}", cut(encoded(NOISE, kind), share), Bad(DAMAGED))
        for kind in ("gif", "webp", "bmp")
        for share in (0.3, 0.9)
    ),
    Nasty("png_header_crc.png", replaced(PNG, 29, b"\0\0\0\0"), Bad(DAMAGED)),
    Nasty("png_flipped_bit.png", replaced(PNG, 2000, bytes([PNG[2000] ^ 1])), Bad(DAMAGED)),
    # --- not what they say
    Nasty("text.jpg", b"an image, honestly", Bad("none of the formats JPEG, PNG, WEBP, GIF, BMP: it starts with the")),
    Nasty("tiff.jpg", encoded(PICTURE, "tiff"), Bad("it is a TIFF; features.tiff=true decodes it$")),
    Nasty("page.tiff", encoded(PICTURE, "tiff"), Bad("it is a TIFF; features.tiff=true decodes it$")),
    Nasty("map.ppm", encoded(PICTURE, "ppm"), Bad("none of the formats .* it starts with the bytes 50 36 0a")),
    Nasty("icon.png", encoded(PICTURE, "ico"), Bad("none of the formats")),
    Nasty("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", Bad("none of the formats")),
    Nasty("png_called.jpg", encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty("jpeg_called.bmp", PLAIN_JPEG, Good(PLAIN, off_by=3)),
    # --- colours
    Nasty("cmyk.jpg", CMYK, Good(RED, off_by=5)),
    Nasty(
        "cmyk_without_marker.jpg",
        without_adobe_marker(CMYK),
        Good(RED, off_by=5),
    ),
    Nasty(
        "ycck.jpg",
        # Luma 55, no colour, no black, all stored inverted.
        with_adobe_transform(encoded(Image.new("CMYK", (16, 16), (200, 127, 127, 0)), "jpeg", quality=95), 2),
        Good(np.full((16, 16, 3), 200, dtype=np.uint8), off_by=5),
    ),
    Nasty("palette.png", palette(transparent=False), Good(np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8))),
    Nasty("palette_hole.png", palette(transparent=True), Good(np.array([[[10, 20, 30], [255] * 3]], np.uint8))),
    Nasty("grey.png", image_of("L", 77), flat(77, 77, 77)),
    Nasty("black_and_white.png", image_of("1", 1), flat(255, 255, 255)),
    Nasty("grey_alpha.png", image_of("LA", (77, 255)), flat(77, 77, 77)),
    Nasty("hidden_black.png", image_of("LA", (0, 0)), flat(255, 255, 255)),
    Nasty("alpha.png", image_of("RGBA", (0, 0, 0, 51)), flat(204, 204, 204)),
    Nasty("hidden_red.png", image_of("RGBA", (255, 0, 0, 0)), flat(255, 255, 255)),
    Nasty(
        "hidden_red_webp.webp", encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "webp", lossless=True), Good(WHITE)
    ),
    Nasty("colour_key.png", encoded(Image.new("RGB", (3, 2), COLOUR), "png", transparency=COLOUR), Good(WHITE)),
    Nasty("grey16.png", encoded(RAMP, "png"), Good(np.repeat((RAMP / 257).round().astype(np.uint8)[..., None], 3, 2))),
    Nasty(
        "grey16_key.png",
        png(DEEP[..., 0], 0, chunk(b"tRNS", DEEP[0, 0, :1].astype(">u2").tobytes())),
        Good(
            np.where(DEEP[..., :1] == DEEP[0, 0, 0], 255, (DEEP[..., :1] / 257).round()).repeat(3, 2).astype(np.uint8)
        ),
    ),
    Nasty("rgb16.png", png(DEEP, 2), Good((DEEP / 257).round().astype(np.uint8), off_by=1)),
    Nasty(
        "wide_gamut.png",
        encoded(PICTURE, "png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        Good(PICTURE),
    ),
    # --- turned
    *(Nasty(f"exif_{way}.png", encoded(stored_for(way), "png", exif=exif(way)), Good(PICTURE)) for way in range(1, 9)),
    *(Nasty(f"exif_{way}.png", encoded(PICTURE, "png", exif=exif(way)), Good(PICTURE)) for way in (0, 9, 65535)),
    Nasty("exif_huge.jpg", encoded(PLAIN, "jpeg", quality=95, exif=exif(1, more=b"x" * 60_000)), Good(PLAIN, off_by=3)),
    Nasty("exif_cut.jpg", encoded(PLAIN, "jpeg", quality=95, exif=exif(6).tobytes()[:20]), Good(PLAIN, off_by=3)),
    # --- odd kinds
    Nasty("progressive.jpg", encoded(PLAIN, "jpeg", quality=95, progressive=True), Good(PLAIN, off_by=3)),
    Nasty("twelve_bits.jpg", replaced(JPEG, frame_header(JPEG) + 4, b"\x0c"), Bad(DAMAGED)),
    Nasty("lossless.jpg", replaced(JPEG, frame_header(JPEG), b"\xff\xc3"), Bad(DAMAGED)),
    Nasty("endless.gif", long_gif(10_000), Good(np.zeros((4, 4, 3), dtype=np.uint8))),
    Nasty(
        "film_webp.webp", encoded(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:], lossless=True), Good(RED)
    ),
    Nasty("film_png.png", encoded(FRAMES[0], "png", save_all=True, append_images=FRAMES[1:]), Good(RED)),
    Nasty("shots.jpg", encoded(FRAMES[0], "mpo", save_all=True, append_images=FRAMES[1:]), Good(RED, off_by=5)),
    Nasty("chatty.png", long_text(compressed=False), Good(PICTURE)),
    Nasty("text_bomb.png", long_text(compressed=True), Bad(DAMAGED + "ValueError: Decompressed data too large")),
    # --- sizes
    Nasty("dot.png", encoded(PICTURE[:1, :1], "png"), Good(PICTURE[:1, :1])),
    Nasty(
        "column.png",
        encoded(Image.new("RGB", (1, 65500), COLOUR), "png"),
        Good(np.full((65500, 1, 3), COLOUR, np.uint8)),
    ),
    Nasty(
        "row.jpg",
        encoded(Image.new("RGB", (65500, 1), COLOUR), "jpeg", quality=95),
        Good(np.full((1, 65500, 3), COLOUR, np.uint8), off_by=3),
    ),
    Nasty("bomb_66.png", bomb(8100, 8100), Bad(r"8100 x 8100 = 65\.6 megapixels; features\.max_pixels is 64,000,000$")),
    Nasty("bomb_144.png", bomb(12_000, 12_000), Bad(r"= 144\.0 megapixels; features\.max_pixels is 64,000,000$")),
    Nasty("bomb_400.png", bomb(20_000, 20_000), Bad(r"= 400\.0 megapixels; features\.max_pixels is 64,000,000$")),
    Nasty(
        "bomb_bmp.bmp",
        replaced(encoded(PICTURE, "bmp"), 18, struct.pack("<ii", 20_000, 20_000)),
        Bad("400.0 megapixels"),
    ),
    Nasty(
        "bomb_gif.gif",
        replaced(encoded(PICTURE, "gif"), 6, struct.pack("<HH", 13_000, 13_000)),
        Bad("169.0 megapixels"),
    ),
    Nasty(
        "bomb_that_pillow_refuses.gif",
        replaced(encoded(PICTURE, "gif"), 6, struct.pack("<HH", 65535, 65535)),
        Bad("megapixels"),
    ),
    # --- no files
    Nasty("pipe.jpg", os.mkfifo, Bad(r"pipe\.jpg: not a regular file$")),
    Nasty("broken_link.jpg", lambda path: path.symlink_to("nowhere.jpg"), Bad("no such file$")),
    Nasty("looping_link.jpg", lambda path: path.symlink_to(path.name), Bad("no such file$")),
    Nasty("link_to_a_device.jpg", lambda path: path.symlink_to("/dev/zero"), Bad("not a regular file$")),
    # --- names
    Nasty("new\nline.png", encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty("\N{DOG FACE}\N{FAMILY}.png", encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty(
        unicodedata.normalize("NFD", "Ä\N{LATIN SMALL LETTER E WITH ACUTE}.png"), encoded(PICTURE, "png"), Good(PICTURE)
    ),
    Nasty("\N{HEBREW LETTER ALEF}\N{RIGHT-TO-LEFT OVERRIDE}gpj.png", encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty(os.fsdecode(b"caf\xe9.png"), encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty("x" * 251 + ".png", encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty("c:\\..\\con.png", encoded(PICTURE, "png"), Good(PICTURE)),
    Nasty("$(touch canary) ; *.png", encoded(PICTURE, "png"), Good(PICTURE)),
]


def write(folder: Path, nasty: Nasty) -> Path:
    path = folder / nasty.name
    if isinstance(nasty.make, bytes):
        path.write_bytes(nasty.make)
    else:
        nasty.make(path)
    return path


@pytest.mark.parametrize("nasty", CORPUS, ids=lambda nasty: ascii(nasty.name)[:40])
def test_each_kind_gives_its_pixels_or_is_rejected_and_named(tmp_path: Path, nasty: Nasty) -> None:
    path = write(tmp_path, nasty)
    if isinstance(nasty.outcome, Bad):
        with pytest.raises(ImageRejected) as failure:
            decode_image(path)
        assert str(failure.value).startswith(str(path))
        assert re.search(nasty.outcome.reason, str(failure.value)), str(failure.value)
    else:
        decoded = decode_image(path)
        assert decoded.shape == nasty.outcome.pixels.shape
        assert np.abs(decoded.astype(int) - nasty.outcome.pixels).max() <= nasty.outcome.off_by


def test_a_collection_of_them_gives_exactly_the_good_ones_and_names_every_other(tmp_path: Path) -> None:
    for nasty in CORPUS:
        write(tmp_path, nasty)
    (tmp_path / "folder.jpg").mkdir()
    write(tmp_path / "folder.jpg", Nasty("inside.png", encoded(PICTURE, "png"), Good(PICTURE)))
    images = list_images(tmp_path)
    assert len(images) == len(CORPUS) + 1
    (tmp_path / "dot.png").unlink()  # between listing and reading
    (tmp_path / "grey.png").write_bytes(b"changed")
    preparation = Preparation(Preprocessing(image_size=4, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3))
    found = [decode_batch(batch, preparation) for batch in shard_batches(0, images, 16)]

    bad = {Path(nasty.name).stem for nasty in CORPUS if isinstance(nasty.outcome, Bad)} | {"dot", "grey"}
    assert {image.image_id for image in images} - bad == {image.image_id for batch in found for image in batch.images}
    rejected = {entry.image_id: entry for batch in found for entry in batch.rejected}
    assert set(rejected) == bad
    paths = {image.image_id: image.name for image in images}
    assert all(entry.file == paths[name] and entry.reason.startswith(paths[name]) for name, entry in rejected.items())
    assert all(counts_fit(batch) for batch in found)
    assert not (tmp_path / "canary").exists()


def counts_fit(batch: DecodedBatch) -> bool:
    return batch.inputs is not None and len(batch.images) == len(batch.inputs.pixels) == len(batch.inputs.sizes)


def test_a_file_that_may_not_be_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(PICTURE, "png"))
    path.chmod(0)

    def refuse(path: Path) -> bytes:  # the superuser reads it all the same
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ImageRejected, match=r"secret\.png: cannot be read \(Permission denied\)$"):
        decode_image(ImageFile("secret", path))
