"""Where the cells of a feature map lie. Imports no torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64


def cell_boxes(*, rows: int, columns: int, grid: int | None = None) -> Float32[np.ndarray, "V 4"]:
    """The boxes of a feature map's cells, row by row: x0, y0, x1, y1 as fractions of width and height.

    With ``grid``, of the cells that adaptive pooling makes; where the sizes do not divide they overlap, as in
    VL-Adapter's 7 x 7 to 6 x 6.
    """
    (top, bottom), (left, right) = (_edges(size, grid or size) for size in (rows, columns))
    row, column = (axis.ravel() for axis in np.indices((len(top), len(left))))
    return np.stack([left[column], top[row], right[column], bottom[row]], axis=1).astype(np.float32)


def _edges(size: int, cells: int) -> tuple[Float64[np.ndarray, " cells"], Float64[np.ndarray, " cells"]]:
    """Where the cells of an adaptive pooling begin and end, as fractions."""
    cell = np.arange(cells)
    return cell * size // cells / size, -(-(cell + 1) * size // cells) / size
