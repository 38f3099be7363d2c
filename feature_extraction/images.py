"""Image files, and decoding that trusts neither names nor headers. Imports no torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # recognised by content; other decoders are never reached

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


@runtime_checkable
class Part(Protocol):
    """A place inside a file that holds many images, such as a tar archive; small, since processes send it around."""

    @property
    def name(self) -> str:
        """What the user calls it, such as a member's name."""

    def read(self, path: Path) -> bytes:
        """The encoded image."""


class ImageFile(NamedTuple):
    """An image on disk; its id is the file name without the last suffix."""

    image_id: str
    path: Path
    part: Part | None = None  # of the file; None: the whole file

    @property
    def name(self) -> str:
        """The file, and the part of it, for the user."""
        return str(self.path) if self.part is None else f"{self.path}: {self.part.name}"


class Decoding(NamedTuple):
    """What is decoded, and how."""

    exif: bool = True  # turn photos upright as their metadata say
    max_pixels: int = 64_000_000  # checked from the header, before memory is spent
    tiff: bool = False  # TIFF besides FORMATS


DEFAULT_DECODING = Decoding()


class ImageRejected(ValueError):
    """An image that cannot be used; the text names the file and what failed."""


def decode_image(image: ImageFile | Path, rules: Decoding = DEFAULT_DECODING) -> UInt8[np.ndarray, "height width 3"]:
    """The upright RGB pixels of the first frame, transparency composited on white, 16 bits scaled to 8.

    Raises:
        ImageRejected: unreadable, truncated, larger than ``rules.max_pixels``, or of none of the formats.
    """
    path = image if isinstance(image, Path) else image.path
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
