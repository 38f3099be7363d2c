from __future__ import annotations

import pytest
import torch

from feature_extraction.errors import UsageError
from feature_extraction.towers.tower import boxes_of_whole_images, tokens_as_map


def test_tokens_fill_their_square_row_by_row() -> None:
    tokens = torch.arange(4.0).view(1, 4, 1)
    assert tokens_as_map(tokens).tolist() == [[[[0, 1], [2, 3]]]]


def test_patches_that_fill_no_square_are_refused() -> None:
    with pytest.raises(UsageError, match="gives 7 tokens, which fill no square grid"):
        tokens_as_map(torch.zeros(1, 7, 4))


def test_tokens_without_a_place_have_the_whole_image_as_their_box() -> None:
    assert boxes_of_whole_images(2).tolist() == [[0, 0, 1, 1]] * 2
