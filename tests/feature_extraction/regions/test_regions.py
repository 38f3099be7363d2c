from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from feature_extraction.regions.regions import Candidates, Choice, choose, padded, region_features
from feature_extraction.settings import ExtractionSettings

Array = np.ndarray[Any, Any]
ALL = Choice(count=100, overlap=1.0, min_score=0.0)


def random_candidates(seed: int, count: int = 40) -> Candidates:
    random = np.random.default_rng(seed)
    corners = random.uniform(-0.2, 1.2, (count, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    # Few different scores: many ties.
    scores = (random.integers(0, 8, count) / 8).astype(np.float32)
    return Candidates(boxes, scores, np.arange(count))


def overlap(one: Array, other: Array) -> float:
    corner, end = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.clip(end - corner, 0, None)))
    return shared / (float(np.prod(one[2:] - one[:2])) + float(np.prod(other[2:] - other[:2])) - shared)


def plainly_chosen(found: Candidates, choice: Choice) -> list[int]:
    """The rows of the best boxes, in the plainest form."""
    boxes = np.clip(found.boxes, 0, 1)
    assert found.scores is not None
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-float(found.scores[row]), row)):
        empty = (boxes[row, 2:] <= boxes[row, :2]).any()
        if empty or found.scores[row] < choice.min_score:
            continue
        if all(overlap(boxes[row], boxes[other]) <= choice.overlap for other in kept):
            kept.append(row)
    return kept[: choice.count]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", [Choice(6, 0.3, 0.0), Choice(100, 0.5, 0.4), Choice(10, 0.0, 0.0), ALL])
def test_the_chosen_boxes_are_those_of_a_plain_suppression(seed: int, choice: Choice) -> None:
    found = random_candidates(seed)
    rows = plainly_chosen(found, choice)
    chosen = choose(found, choice)
    assert chosen.class_ids is not None
    assert chosen.scores is not None
    assert found.scores is not None
    assert chosen.class_ids.tolist() == rows
    assert chosen.scores.tolist() == found.scores[rows].tolist()
    assert np.array_equal(chosen.boxes, np.clip(found.boxes[rows], 0, 1))


def test_of_equal_scores_the_earlier_box_wins() -> None:
    box = [0.1, 0.1, 0.5, 0.5]
    found = Candidates(np.array([box, box, box], np.float32), np.full(3, 0.5, np.float32), np.array([7, 8, 9]))
    chosen = choose(found, Choice(2, 0.5, 0.0))
    assert chosen.class_ids is not None
    assert chosen.class_ids.tolist() == [7]


def test_boxes_without_scores_keep_their_order_and_may_overlap() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.9, 1], [0.5, 0.5, 0.5, 0.9], [0, 0, 1, 0.9]], np.float32)
    chosen = choose(Candidates(boxes, None, np.arange(4)), Choice(2, 0.1, 0.9))
    assert chosen.scores is None
    assert chosen.class_ids is not None
    assert chosen.class_ids.tolist() == [0, 1]
    assert choose(Candidates(boxes, None, None), ALL).boxes.tolist() == boxes[[0, 1, 3]].tolist()


def test_boxes_outside_the_image_are_cut_or_dropped() -> None:
    boxes = np.array([[-0.5, 0.2, 0.5, 1.5], [1.2, 0, 1.5, 1], [0.3, -1, 0.6, 0], [np.nan, 0, 1, 1]], np.float32)
    chosen = choose(Candidates(boxes, None, None), ALL)
    assert chosen.boxes.tolist() == [[0, np.float32(0.2), 0.5, 1]]


def test_no_boxes_stay_no_boxes() -> None:
    nothing = Candidates(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert choose(nothing, ALL).boxes.shape == (0, 4)


def test_fewer_regions_are_filled_up_with_masked_zeros() -> None:
    one = Candidates(np.array([[0, 0, 1, 1]], np.float32), np.array([0.9], np.float32), np.array([4]))
    none = Candidates(np.zeros((0, 4), np.float32), None, None)
    regions = padded([one, none], 2)
    assert regions.boxes.tolist() == [[[0, 0, 1, 1], [0] * 4], [[0] * 4] * 2]
    assert regions.mask.tolist() == [[True, False], [False, False]]
    assert regions.scores.tolist() == [[np.float32(0.9), 0], [0, 0]]
    assert regions.class_ids.tolist() == [[4, 0], [0, 0]]


def test_the_choice_is_that_of_the_settings() -> None:
    settings = ExtractionSettings(region_count=5, region_overlap=0.25, region_min_score=0.125)
    assert Choice.of(settings) == Choice(5, 0.25, 0.125)


# --- RoIAlign


def test_region_features_are_the_means_of_torchvision_s_cells() -> None:
    torch.manual_seed(0)
    feature_map = torch.randn(2, 3, 4, 6)
    boxes = torch.tensor(
        [[[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 0.875]], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.6, 1.0]]]
    )
    rows = [(image, *(box * torch.tensor([6, 4, 6, 4])).tolist()) for image in (0, 1) for box in boxes[image]]
    cells = roi_align(feature_map, torch.tensor(rows), (7, 7), 1.0, 2, True)
    expected = cells.flatten(2).mean(2).reshape(2, 2, 3)
    torch.testing.assert_close(region_features(feature_map, boxes), expected, rtol=0, atol=1e-6)


def test_a_constant_map_gives_its_constant_and_boxes_without_an_area_zeros() -> None:
    feature_map = torch.tensor([2.0, -3.0]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    boxes = torch.tensor([[[0.1, 0.1, 0.4, 0.9], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 1.0]]])
    expected = torch.tensor([[[2.0, -3.0], [2.0, -3.0], [0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(region_features(feature_map, boxes), expected)


def test_a_box_around_one_cell_shows_that_cell_most() -> None:
    feature_map = torch.zeros(1, 1, 8, 8)
    feature_map[0, 0, 2, 5] = 1  # row 2, column 5
    boxes = torch.tensor([[[5 / 8, 2 / 8, 6 / 8, 3 / 8], [2 / 8, 5 / 8, 3 / 8, 6 / 8]]])
    here, mirrored = region_features(feature_map, boxes)[0, :, 0].tolist()
    assert here > 0.5
    assert mirrored == 0


def test_maps_of_half_precision_are_pooled_in_full() -> None:
    torch.manual_seed(0)
    feature_map = torch.randn(1, 4, 7, 7).to(torch.bfloat16)
    boxes = torch.tensor([[[0.13, 0.29, 0.61, 0.87]]])
    pooled = region_features(feature_map, boxes)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, region_features(feature_map.float(), boxes))


def test_the_regions_of_an_image_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    feature_map, corners = torch.randn(3, 4, 5, 5), torch.rand(3, 6, 2, 2)
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    together = region_features(feature_map, boxes)
    for row in range(3):
        assert torch.equal(together[row], region_features(feature_map[row : row + 1], boxes[row : row + 1])[0])
