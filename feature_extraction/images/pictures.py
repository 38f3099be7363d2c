"""Pictures for the eye: boxes drawn on an image, and many images on one sheet. Imports no torch."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 640  # pixels; smaller images are enlarged before boxes are drawn on them
_GOLDEN = 0.618034  # of the colour circle from one box to the next, which keeps all of them apart
_MARGIN = 8  # pixels around the tiles of a sheet


class _Area(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: _Area) -> float:
        """How many pixels lie in both."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def draw_boxes(
    image: UInt8[np.ndarray, "height width 3"], boxes: Float[np.ndarray, "n 4"], labels: Sequence[str] = ()
) -> Image.Image:
    """The image with its boxes (x0, y0, x1, y1 as fractions) outlined, the first ones on top, each with its label."""
    picture = _enlarged(Image.fromarray(image))
    canvas = ImageDraw.Draw(picture)
    width, height = picture.size
    thickness = max(2, round(min(width, height) / 400))
    font = _font(max(12, round(min(width, height) / 60)))
    areas = [_Area(*(np.clip(box, 0, 1) * (width - 1, height - 1, width - 1, height - 1)).round()) for box in boxes]
    for number, area in reversed(list(enumerate(areas))):
        # A dark line around each coloured one: it can be seen on any ground.
        canvas.rectangle(_grown(area, 1, width, height), outline=(0, 0, 0), width=thickness + 2)
        canvas.rectangle(area, outline=_colour(number), width=thickness)
    taken: list[_Area] = []
    for number, (area, label) in enumerate(zip(areas, labels, strict=False)):
        text = shortened(label, font, width // 2)
        if text:
            place = _place(area, _text_size(text, font), taken, width, height)
            taken.append(place)
            canvas.rectangle(place, fill=_colour(number))
            canvas.text((place.left + 2, place.top + 1), text, fill=_ink(_colour(number)), font=font)
    return picture


def contact_sheet(pictures: Iterable[tuple[Image.Image, str]], *, columns: int, tile: int) -> Image.Image:
    """The pictures row by row, each fitted into a square of ``tile`` pixels with its caption below."""
    shown = list(pictures)
    font = _font(max(11, tile // 18))
    line = _text_size("Ag", font)[1]
    across, down = max(1, min(columns, len(shown))), -(-len(shown) // columns)
    step = tile + _MARGIN, tile + line + _MARGIN
    sheet = Image.new("RGB", (across * step[0] + _MARGIN, max(down * step[1], 0) + _MARGIN), "white")
    canvas = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(shown):
        left, top = _MARGIN + number % columns * step[0], _MARGIN + number // columns * step[1]
        small = picture.convert("RGB")
        small.thumbnail((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (tile - small.width) // 2, top + (tile - small.height) // 2))
        text = shortened(caption, font, tile)
        canvas.text((left + (tile - _text_size(text, font)[0]) // 2, top + tile), text, fill="black", font=font)
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A text in so many pixels: its middle cut out if it is too long, and in ASCII, which is all that the font has."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    known = "".join(one if " " <= one <= "~" else "?" for one in plain)
    if font.getlength(known) <= width:
        return known
    # The end of an id or path tells more than its middle.
    for kept in range(len(known) - 1, 0, -1):
        short = f"{known[: kept // 2]}...{known[len(known) - (kept - kept // 2) :]}"
        if font.getlength(short) <= width:
            return short
    return ""


def _enlarged(image: Image.Image) -> Image.Image:
    """A copy, enlarged by a whole factor where it is small."""
    factor = -(-SMALLEST_SIDE // min(image.size)) if min(image.size) < SMALLEST_SIDE else 1
    # Narrow strips stay as they are: they would become huge.
    factor = factor if max(image.size) * factor <= 4 * SMALLEST_SIDE else 1
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def _colour(number: int) -> tuple[int, int, int]:
    """A light colour, unlike those of the numbers around it."""
    red, green, blue = colorsys.hls_to_rgb(number * _GOLDEN % 1, 0.62, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _ink(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever can be read on the colour."""
    red, green, blue = ground
    light = 0.299 * red + 0.587 * green + 0.114 * blue  # as the eye weighs them (ITU-R BT.601)
    return (0, 0, 0) if light > 120 else (255, 255, 255)


def _grown(area: _Area, pixels: int, width: int, height: int) -> _Area:
    return _Area(
        max(area.left - pixels, 0),
        max(area.top - pixels, 0),
        min(area.right + pixels, width - 1),
        min(area.bottom + pixels, height - 1),
    )


def _place(area: _Area, size: tuple[int, int], taken: Sequence[_Area], width: int, height: int) -> _Area:
    """Where a label of this size goes: at its box, inside the picture, and off the other labels if it can be."""
    columns, rows = size
    left, right = area.left, area.right - columns
    inside = [(left, area.top), (right, area.top), (left, area.bottom - rows), (right, area.bottom - rows)]
    outside = [(left, area.top - rows), (right, area.top - rows), (left, area.bottom), (right, area.bottom)]
    roomy = area.right - area.left > 1.5 * columns and area.bottom - area.top > 3 * rows
    corners = [*inside, *outside] if roomy else [*outside, *inside]
    places = []
    for x, y in corners:
        column, row = min(max(x, 0), max(width - 1 - columns, 0)), min(max(y, 0), max(height - 1 - rows, 0))
        places.append(_Area(column, row, column + columns, row + rows))
    return min(places, key=lambda place: sum(place.shared(other) for other in taken))


def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Width and height in pixels of a line with a small border."""
    bottom = font.getbbox("Agjpq|")[3]
    return round(font.getlength(text)) + 4, round(bottom) + 3
