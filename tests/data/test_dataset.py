from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dept_vl.data.dataset import NO_TARGET, ExampleDataset, draw_targets
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

Make = Callable[..., ExampleDataset]


def shares(dataset: ExampleDataset, epochs: int, seed: int = 0) -> dict[int, float]:
    """How often each target row is drawn, as a share of all draws."""
    drawn = np.concatenate([draw_targets(dataset.tokens, seed=seed, epoch=epoch) for epoch in range(epochs)])
    rows, counts = np.unique(drawn, return_counts=True)
    return dict(zip(rows.tolist(), (counts / len(drawn)).tolist(), strict=True))


def test_an_item_holds_the_example_and_the_features_of_its_image(make_dataset: Make) -> None:
    dataset = make_dataset(9)
    item = dataset.item(8, target=17)
    assert item.example_id == "q8"
    assert np.array_equal(item.text_ids, dataset.tokens.texts.row(8))
    assert item.visual_tokens.shape == (1, 4, 6)
    assert item.visual_tokens.dtype == np.float16
    assert (item.visual_tokens == 8).all()
    assert item.boxes.shape == (1, 4, 4)
    assert (item.boxes == 0.5).all()
    assert item.visual_mask.tolist() == [[True] * 4]
    assert np.array_equal(item.target_ids, dataset.tokens.targets.row(17))
    assert item.target_weight == 0.3


def test_several_images_keep_their_order(make_dataset: Make) -> None:
    item = make_dataset(5, images=2).item(4)
    assert item.visual_tokens[:, 0, 0].tolist() == [4, 5]
    assert item.boxes.shape == (2, 4, 4)
    assert item.visual_mask.shape == (2, 4)


def test_examples_without_images_have_no_visual_tokens(make_dataset: Make) -> None:
    dataset = make_dataset(3, images=0)
    assert dataset.item(0).visual_tokens.shape == (0, 4, 6)
    assert dataset.item(0).boxes.shape == (0, 4, 4)
    assert dataset.item(0).visual_mask.shape == (0, 4)
    without_store = ExampleDataset(dataset.examples, dataset.tokens, None, task="toy").item(0)
    assert without_store.visual_tokens.shape == (0, 0, 0)
    assert without_store.boxes.shape == (0, 0, 4)
    assert without_store.visual_mask.shape == (0, 0)


def test_no_target_is_the_end_token_with_weight_zero(make_dataset: Make) -> None:
    dataset = make_dataset(3, targets=())
    assert draw_targets(dataset.tokens, seed=0, epoch=0).tolist() == [NO_TARGET] * 3
    item = dataset.item(1, NO_TARGET)
    assert item.target_ids.tolist() == [1]
    assert item.target_weight == 0.0


def test_an_item_carries_the_score_of_each_answer_of_the_vocabulary(make_dataset: Make) -> None:
    """Whatever target is drawn; answers outside the vocabulary count as none."""
    plain = make_dataset(2)  # red: 0.9, blue w1: 0.3
    answers = ["w1", "red", "blue w1", "blue"]
    dataset = ExampleDataset(plain.examples, plain.tokens, plain._store, task="toy", answers=answers)
    for target in (NO_TARGET, 2, 3):
        scores = dataset.item(1, target).answer_scores
        assert scores.dtype == np.float32
        assert scores.tolist() == pytest.approx([0, 0.9, 0.3, 0])
    outside = ExampleDataset(plain.examples, plain.tokens, plain._store, task="toy", answers=["w1", "w2"])
    assert outside.item(0).answer_scores.tolist() == [0, 0]
    assert plain.item(0).answer_scores.shape == (0,)


def test_an_image_without_features_is_an_error_that_names_it(make_dataset: Make) -> None:
    dataset = make_dataset(1)
    foreign = ExampleDataset([Example("q0", "", ("elsewhere",))], dataset.tokens, dataset._store, task="toy")
    with pytest.raises(InputDataError, match="No features for image 'elsewhere'"):
        foreign.item(0)


def test_targets_are_drawn_in_proportion_to_their_weights(make_dataset: Make) -> None:
    one_example = make_dataset(1, targets=(Target("red", 0.9), Target("w1", 0.6), Target("w2", 0.0), Target("w3", 0.3)))
    found = shares(one_example, epochs=4000)
    assert found.keys() == {0, 1, 3}
    # Four standard deviations of a share p of n draws: 4 * sqrt(p * (1 - p) / n) < 0.032.
    assert found == pytest.approx({0: 0.5, 1: 1 / 3, 3: 1 / 6}, abs=0.032)


def test_the_draws_of_this_version_are_kept(make_dataset: Make) -> None:
    dataset = make_dataset(1000)
    drawn = draw_targets(dataset.tokens, seed=0, epoch=0) - dataset.tokens.first_target[:-1]
    assert np.bincount(drawn).tolist() == [751, 249]  # expected: 750, 250


def test_draws_are_a_function_of_seed_epoch_and_example(make_dataset: Make) -> None:
    def draw(count: int, seed: int, epoch: int) -> list[int]:
        return list(draw_targets(make_dataset(count).tokens, seed=seed, epoch=epoch))

    assert draw(100, 1, 2) == draw(100, 1, 2)
    assert draw(100, 1, 2)[:40] == draw(40, 1, 2)
    assert draw(100, 1, 2) != draw(100, 2, 2)
    assert draw(100, 1, 2) != draw(100, 1, 3)


def test_every_draw_is_one_of_the_examples_own_targets(make_dataset: Make) -> None:
    tokens = make_dataset(500, targets=(Target("red", 1e-9), Target("blue", 1e6), Target("w1", 0.1))).tokens
    drawn = draw_targets(tokens, seed=0, epoch=0)
    assert (drawn >= tokens.first_target[:-1]).all()
    assert (drawn < tokens.first_target[1:]).all()


def test_of_targets_that_all_weigh_nothing_the_first_is_taken(make_dataset: Make) -> None:
    dataset = make_dataset(2, targets=(Target("red", 0.0), Target("blue", 0.0)))
    drawn = draw_targets(dataset.tokens, seed=0, epoch=0)
    assert drawn.tolist() == [0, 2]
    assert dataset.item(1, 2).target_weight == 0.0
