"""What the images of an import have in common: the shape of the store, and which images do not fit it."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.interchange.image_arrays import Look, Unusable
from feature_extraction.interchange.sources import Sources

DTYPES = ("float16", "float32")
BOXES = ("cells", "zeros")  # what images without boxes can get


class ImportSettings(NamedTuple):
    """What to make of the features of another tool."""

    name: str  # what made them, such as butd_vg; stores of equal names can be exchanged
    format: str | None = None  # one of sources.FORMATS; None: as the names of the files tell
    boxes: str | None = None  # of BOXES, where the source has none; None: cells for grids
    visual_tokens: int | None = None  # per image; None: as many as the image with the most has
    dtype: str | None = None  # of DTYPES; None: their own
    shard_size: int = 512  # images in one file of the store
    max_rejected_fraction: float = 0.0  # of all images, 0 to 1; 0 stops at any unusable image


class Shape(NamedTuple):
    """What the features of an import have in common."""

    tokens: int
    width: int
    dtype: str
    fields: frozenset[str]
    boxes: str  # regions, cells or zeros
    settings: ImportSettings

    def oddity(self, look: Look | Unusable) -> str | None:
        """Why an image cannot be used, or None if it can, as far as seen."""
        if isinstance(look, Unusable):
            return str(look)
        own, common = _kind(look, self.settings), (self.width, self.dtype, self.fields)
        if own != common:
            return f"{_named(*own)}, but those of most images are {_named(*common)}"
        if look.tokens > self.tokens:
            return f"{look.tokens} visual tokens, more than --visual-tokens {self.tokens}"
        if look.tokens != self.tokens and self.boxes == "cells":
            return f"{look.tokens} visual tokens, but most images have {self.tokens}, the cells of a grid"
        return None


def choose_shape(sources: Sources, settings: ImportSettings) -> Shape:
    """The shape that most images have, and boxes for them.

    Raises:
        InputDataError: no image is usable.
        UsageError: a store cannot hold them, or the settings do not fit.
    """
    looks = [look for image_id in sources.ids if isinstance(look := sources.look(image_id), Look)]
    if not looks:
        first = sources.look(sources.ids[0])
        raise InputDataError(
            f"None of {len(sources.ids):,} images can be used. The first is {sources.place(sources.ids[0])}: {first}. "
            "Check --source and --format"
        )
    ((width, dtype, fields), _), *_ = Counter(_kind(look, settings) for look in looks).most_common()
    if dtype not in DTYPES:
        raise UsageError(
            f"The features are {dtype}; a store holds {' or '.join(DTYPES)}. Give --dtype float32 to round them"
        )
    counts = Counter(look.tokens for look in looks if _kind(look, settings) == (width, dtype, fields))
    if "boxes" in fields:
        boxes = "regions"
        if settings.boxes is not None:
            raise UsageError(f"--boxes is {settings.boxes}, but the features have boxes of their own. Leave it out")
    else:
        boxes = settings.boxes or ("cells" if sources.grid else "")
    ((common, _), *_) = counts.most_common(1)
    tokens = settings.visual_tokens or (common if boxes == "cells" else max(counts))
    if not boxes or (boxes == "cells" and math.isqrt(tokens) ** 2 != tokens):
        what = f"{tokens} visual tokens that are no square grid" if boxes else "no boxes"
        raise UsageError(
            f"The images have {what}. Give --boxes cells if the visual tokens are the cells of a square grid, row by "
            "row, or --boxes zeros if nothing is known of their places, as VL-Adapter feeds them"
        )
    return Shape(tokens, width, dtype, fields, boxes, settings)


def check_settings(settings: ImportSettings) -> None:
    """See that the settings are possible ones.

    Raises:
        UsageError: they are not; names all faults.
    """
    faults = []
    if not re.fullmatch(r"[\w.+-]+", settings.name):
        faults.append(f"--name is {settings.name!r}; it says what made the features, in letters and digits: butd_vg")
    if settings.boxes not in (None, *BOXES):
        faults.append(f"--boxes is {settings.boxes!r}; it is {' or '.join(BOXES)}")
    if settings.dtype not in (None, *DTYPES):
        faults.append(f"--dtype is {settings.dtype!r}; it is {' or '.join(DTYPES)}")
    for option, value in (("visual-tokens", settings.visual_tokens), ("shard-size", settings.shard_size)):
        if value is not None and value < 1:
            faults.append(f"--{option} is {value}; it must be at least 1")
    if not 0 <= settings.max_rejected_fraction <= 1:
        faults.append(f"--max-rejected-fraction is {settings.max_rejected_fraction}; it lies in 0 to 1")
    if faults:
        raise UsageError("; ".join(faults))


def _kind(look: Look, settings: ImportSettings) -> tuple[int, str, frozenset[str]]:
    return look.width, settings.dtype or look.dtype, look.fields


def _named(width: int, dtype: str, fields: frozenset[str]) -> str:
    return f"{dtype} features of width {width} with {', '.join(sorted(fields)) or 'nothing else'}"
