from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from feature_extraction.towers.cells import cell_boxes


def test_boxes_are_the_cells_row_by_row() -> None:
    assert cell_boxes(rows=1, columns=2).tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert cell_boxes(rows=2, columns=2)[1].tolist() == [0.5, 0, 1, 0.5]
    assert np.array_equal(cell_boxes(rows=4, columns=4, grid=2), cell_boxes(rows=2, columns=2))


def test_boxes_of_an_uneven_pooling_overlap_as_its_windows_do() -> None:
    boxes = cell_boxes(rows=7, columns=7, grid=6)
    for cell in range(36):
        feature_map = torch.zeros(1, 1, 7, 7)
        x0, y0, x1, y1 = (boxes[cell] * 7).round().astype(int)
        feature_map[..., y0:y1, x0:x1] = 1
        pooled = functional.adaptive_avg_pool2d(feature_map, 6).flatten()
        assert pooled[cell] == 1  # the window is not larger than the box
        feature_map[..., y0, x0] = feature_map[..., y1 - 1, x1 - 1] = 0
        assert functional.adaptive_avg_pool2d(feature_map, 6).flatten()[cell] < 1  # and not smaller
