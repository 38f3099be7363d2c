"""Image files, and decoding that trusts neither names nor headers. Imports no torch.

Only the decoders named here are ever reached, each for files that begin as its format does. What Pillow would do of its
own accord is not relied on: its limit of pixels is the process's, ours is in ``Decoding``.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL import ImageFile as PillowFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from feature_extraction.errors import UsageError

# How a file of each format begins, and what decodes it.
_DECODERS: dict[str, tuple[re.Pattern[bytes], Callable[[io.BytesIO], Image.Image]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WEBP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),  # only where it is asked for
}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # recognised by content

LARGEST_FILE = 400_000_000  # bytes: a worker holds them at once, and a decoder may copy them
_STRIP = 1 << 20  # pixels that become RGB at once, so that the stages of a large image need little memory
_DECODED_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


@runtime_checkable
class Part(Protocol):
    """A place inside a file that holds many images, such as a tar archive; small, since processes send it around."""

    @property
    def name(self) -> str:
        """What the user calls it, such as a member's name."""

    def read(self, path: Path) -> bytes:
        """The encoded image.

        Raises:
            ImageRejected: what stands there is no image.
        """


class ImageFile(NamedTuple):
    """An image on disk; its id is the file name without the last suffix, or what a table says."""

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

    Colour profiles are not applied.

    Raises:
        ImageRejected: unreadable, truncated, larger than ``rules.max_pixels``, or of none of the formats.
        UsageError: Pillow is set to take truncated images for whole ones.
    """
    if PillowFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so that what is missing of a damaged image would be grey "
            "without a word. Leave it False in your own code"
        )
    if isinstance(image, Path):
        image = ImageFile(image.stem, image)
    size = ""
    try:
        data = read_image(image)
        size = f" ({len(data):,} bytes)"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no fault of the pixels
            return _decode(data, rules)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        raise ImageRejected(f"{image.name}{size}: {_reason(error)}") from error


def read_image(image: ImageFile) -> bytes:
    """The bytes of an image as they are stored.

    Raises:
        ImageRejected: nothing that could be an image stands there.
        OSError: it cannot be read.
    """
    if image.part is not None:
        return image.part.read(image.path)
    if not image.path.is_file():  # a folder, a pipe or a device would block or misbehave when opened
        raise ImageRejected("not a regular file" if image.path.exists() else "no such file")
    refuse_large(image.path.stat().st_size)
    return image.path.read_bytes()


def refuse_large(size: int) -> None:
    """Check a number of bytes before so many are read.

    Raises:
        ImageRejected: they are too many.
    """
    if size > LARGEST_FILE:
        raise ImageRejected(f"{size:,} bytes; of an image at most {LARGEST_FILE:,} are read")


def _decode(data: bytes, rules: Decoding) -> UInt8[np.ndarray, "height width 3"]:
    with _decoder(data, rules)(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > rules.max_pixels:
            raise ImageRejected(
                f"{width} x {height} = {width * height / 1e6:.1f} megapixels; features.max_pixels is "
                f"{rules.max_pixels:,}"
            )
        turned = image.tag_v2.get(_EXIF_ORIENTATION, 1) if isinstance(image, TiffImageFile) else None
        image.load()
        pixels = _rgb(image)
        if turned is None:
            orientation = _orientation(image) if rules.exif else 1
        else:  # the decoder of TIFF has turned the image itself
            orientation = 1 if rules.exif else {6: 8, 8: 6}.get(turned) or turned
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _decoder(data: bytes, rules: Decoding) -> Callable[[io.BytesIO], Image.Image]:
    """What decodes the data, told by how they begin."""
    found = next((name for name, (start, _) in _DECODERS.items() if start.match(data)), None)
    if found is not None and (found in FORMATS or rules.tiff):
        return _DECODERS[found][1]
    if not data:
        raise ImageRejected("the file is empty")
    if found is not None:
        raise ImageRejected("it is a TIFF; features.tiff=true decodes it")
    known = ", ".join([*FORMATS, "TIFF"] if rules.tiff else FORMATS)
    raise ImageRejected(f"none of the formats {known}: it starts with the bytes {data[:8].hex(' ')}")


def _orientation(image: Image.Image) -> int:
    """How the loaded image is to be turned, by the numbers of EXIF; 1 where it stays as it is stored."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged metadata: the pixels are still good, and stay as they are stored
        return 1
    return orientation if isinstance(orientation, int) else 1


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    width, height = image.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return _strip_rgb(image)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _strip_rgb(image.crop((0, top, width, bottom)))
    return pixels


def _strip_rgb(image: Image.Image) -> UInt8[np.ndarray, "rows width 3"]:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip almost everything to white
        samples = np.asarray(image).astype(np.uint32)
        grey = ((samples * 255 + 32767) // 65535).astype(np.uint8)
        if "transparency" in image.info:
            grey[samples == image.info["transparency"]] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode not in _DECODED_MODES:
        raise ImageRejected(f"its samples are of the kind {image.mode}; what is black and what is white is not known")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageRejected):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than Pillow decodes of this format, whatever features.max_pixels is ({error})"
    if isinstance(error, OSError) and error.errno is not None:  # the system's fault, not the decoder's
        return f"cannot be read ({error.strerror})"
    return f"damaged or truncated ({type(error).__name__}: {error})"
