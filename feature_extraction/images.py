"""Image files: their ids, decoding that trusts neither names nor headers, and resizing. Imports no torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from feature_extraction.errors import InputDataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # recognised by content; other decoders are never reached
MAX_PIXELS = 64_000_000  # checked from the header, before memory is spent

# Files of a folder that claim to be images. Those of a format that is not decoded are listed too, so that they end in
# the list of rejected images and not in silence.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".psd", ".ppm", ".pgm", ".tga", ".ico"),
)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFile(NamedTuple):
    """An image on disk; its id is the file name without the last suffix."""

    image_id: str
    path: Path


class ImageRejected(ValueError):
    """An image that cannot be used; the text names the file and what failed."""


class Preprocessing(NamedTuple):
    """How a network wants its pixels: squashed to a square, then ``(pixel / 255 - mean) / std`` per channel."""

    image_size: int  # pixels
    interpolation: str  # the name of a filter of Pillow: bicubic, bilinear, lanczos, …
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def resize(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """The image as a square; its aspect ratio is not kept."""
        size = (self.image_size, self.image_size)
        return np.array(Image.fromarray(image).resize(size, Image.Resampling[self.interpolation.upper()]))


def list_images(source: Path) -> list[ImageFile]:
    """The images of a folder, subfolders included, or of a ``.txt`` list with one path a line; sorted by id.

    Paths in a list are relative to the list's folder.

    Raises:
        InputDataError: no such source, no image in it, or two files with the same id.
    """
    if source.is_dir():
        paths = list(_walk(source))
        wanted = f"files ending in {', '.join(SUFFIXES)}"
    elif source.is_file() and source.suffix.lower() == ".txt":
        lines = source.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        paths = [source.parent / line.strip() for line in lines if line.strip()]
        wanted = "one path a line"
    else:
        raise InputDataError(
            f"{source} is neither a folder nor a .txt list of images (one path a line). Check the path of --images"
        )
    if not paths:
        raise InputDataError(f"No images in {source}: expected {wanted}. Check the path of --images")

    images: dict[str, ImageFile] = {}
    for path in paths:
        other = images.setdefault(path.stem, ImageFile(path.stem, path))
        if other.path is not path:
            raise InputDataError(
                f"Two images of {source} have the id {path.stem!r}: {other.path} and {path}. An id is the file name "
                "without its suffix and must be unique: rename one, or give a .txt list that names only one"
            )
    return [images[image_id] for image_id in sorted(images)]


def decode_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The upright RGB pixels of the first frame, transparency composited on white, 16 bits scaled to 8.

    Raises:
        ImageRejected: unreadable, truncated, larger than MAX_PIXELS, or none of FORMATS.
    """
    if not path.is_file():  # a folder, a pipe or a device would block or misbehave when opened
        raise ImageRejected(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no fault of the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(path)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        raise ImageRejected(f"{path} ({_size(path)}): {_reason(error, path)}") from error


def _decode(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            found = f"{width} x {height} = {width * height / 1e6:.0f} megapixels"
            raise ImageRejected(f"{found}; at most {MAX_PIXELS / 1e6:.0f} are decoded")
        image.load()
        upright = _upright(image)
        return np.array(_rgb(upright), dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged metadata: the pixels are still good, and stay as they are stored
        orientation = None
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip almost everything to white
        samples = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            start = file.read(8)
        if not start:
            return "the file is empty"
        return f"none of the formats {', '.join(FORMATS)}: it starts with the bytes {start.hex(' ')}"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {MAX_PIXELS / 1e6:.0f} megapixels: {error}"
    if isinstance(error, ImageRejected):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:  # the system's fault, not the decoder's
        return f"cannot be read ({error.strerror})"
    return f"damaged or truncated ({type(error).__name__}: {error})"


def _size(path: Path) -> str:
    try:
        return f"{path.stat().st_size:,} bytes"
    except OSError:
        return "gone while it was read"


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(root, name)
