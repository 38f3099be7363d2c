from __future__ import annotations

import numpy as np
import pytest
import torch

from dept_vl.data.collate import collate
from dept_vl.data.dataset import Item
from dept_vl.types import Batch

PAD = 0


def item(name: str, text_length: int, target_length: int = 2, images: int = 1) -> Item:
    return Item(
        example_id=name,
        text_ids=np.arange(3, 3 + text_length, dtype=np.int32),
        visual_tokens=np.full((images, 4, 6), text_length / 3, dtype=np.float16),
        boxes=np.full((images, 4, 4), text_length / 32, dtype=np.float32),
        visual_mask=np.arange(images * 4).reshape(images, 4) < text_length,
        target_ids=np.arange(5, 5 + target_length, dtype=np.int32),
        target_weight=text_length / 7,
        answer_scores=np.full(3, text_length / 9, dtype=np.float32),
    )


def collated(*items: Item, **changes: int) -> Batch:
    lengths = {"bucket_width": 8, "max_text_length": 20, "max_target_length": 10, **changes}
    return collate(items, task="toy", pad_id=PAD, **lengths)


@pytest.mark.parametrize(
    ("longest", "length"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 20), (20, 20)], ids=lambda number: str(number)
)
def test_texts_are_padded_to_multiples_of_eight_up_to_the_greatest_length(longest: int, length: int) -> None:
    assert collated(item("a", 1), item("b", longest)).text_ids.shape == (2, length)


@pytest.mark.parametrize(
    ("longest", "length"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 10), (10, 10)], ids=lambda number: str(number)
)
def test_targets_are_padded_to_multiples_of_four_up_to_the_greatest_length(longest: int, length: int) -> None:
    batch = collated(item("a", 1, target_length=1), item("b", 1, target_length=longest))
    assert batch.target_ids.shape == batch.target_mask.shape == (2, length)
    assert batch.target_mask.sum(dim=1).tolist() == [1, longest]


def test_masks_are_true_at_exactly_the_tokens() -> None:
    batch = collated(item("a", 3, target_length=4), item("b", 5, target_length=1))
    assert batch.text_ids.tolist() == [[3, 4, 5, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7, 0, 0, 0]]
    assert batch.text_mask.tolist() == [[True] * 3 + [False] * 5, [True] * 5 + [False] * 3]
    assert batch.target_ids.tolist() == [[5, 6, 7, 8], [5, 0, 0, 0]]
    assert batch.target_mask.tolist() == [[True] * 4, [True, False, False, False]]


def test_a_text_that_holds_the_padding_id_is_not_masked() -> None:
    odd = item("a", 3)._replace(text_ids=np.array([PAD, 4, PAD], dtype=np.int32))
    assert collated(odd).text_mask[0, :3].all()


def test_features_weights_and_answer_scores_reach_the_batch_as_float32() -> None:
    batch = collated(item("a", 1, images=2), item("b", 2, images=2))
    assert batch.task == "toy"
    assert batch.example_ids == ("a", "b")
    assert batch.visual_tokens.shape == (2, 2, 4, 6)
    assert batch.visual_tokens.dtype == batch.boxes.dtype == batch.target_weights.dtype == torch.float32
    assert batch.visual_tokens[:, 0, 0, 0].tolist() == [float(np.float16(1 / 3)), float(np.float16(2 / 3))]
    assert batch.boxes[:, 1, 3, 3].tolist() == [1 / 32, 2 / 32]
    assert batch.visual_mask.tolist() == [
        [[True, False, False, False], [False] * 4],
        [[True] * 2 + [False] * 2, [False] * 4],
    ]
    assert batch.target_weights.tolist() == pytest.approx([1 / 7, 2 / 7])
    assert batch.answer_scores.dtype == torch.float32
    assert batch.answer_scores.tolist() == [pytest.approx([1 / 9] * 3), pytest.approx([2 / 9] * 3)]


def test_features_of_a_store_of_float32_keep_all_their_bits() -> None:
    exact = item("a", 1)._replace(visual_tokens=np.full((1, 4, 6), 1 / 3, dtype=np.float32))
    assert collated(exact).visual_tokens.unique().tolist() == [float(np.float32(1 / 3))]


def test_no_images_give_empty_visual_tokens() -> None:
    batch = collated(item("a", 3, images=0))
    assert batch.visual_tokens.shape == (1, 0, 4, 6)
    assert batch.visual_mask.shape == (1, 0, 4)


def test_rows_of_resident_features_are_integers_even_if_there_are_none() -> None:
    rows = [[4, 0], [7, 4]]
    batch = collated(*(item("a", 1, images=2)._replace(image_rows=tuple(row)) for row in rows))
    assert batch.image_rows is not None
    assert batch.image_rows.dtype == torch.int64
    assert batch.image_rows.tolist() == rows
    none = collated(item("a", 1, images=0)._replace(image_rows=()))
    assert none.image_rows is not None
    assert (none.image_rows.dtype, none.image_rows.shape) == (torch.int64, (1, 0))
    assert collated(item("a", 1)).image_rows is None


def test_a_batch_knows_its_tensors_and_moves_all_of_them() -> None:
    batch = collated(item("a", 3), item("b", 9))
    assert list(batch.tensors()) == [
        *("text_ids", "text_mask", "visual_tokens", "boxes", "visual_mask", "target_ids", "target_mask"),
        *("target_weights", "answer_scores"),
    ]
    assert {len(tensor) for tensor in batch.tensors().values()} == {2}
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert (moved.task, moved.example_ids, moved.image_rows) == ("toy", ("a", "b"), None)
    resident = collated(item("a", 3)._replace(image_rows=(5,))).to(torch.device("meta"))
    assert list(resident.tensors()) == [*batch.tensors(), "image_rows"]
    assert resident.image_rows is not None
    assert resident.image_rows.device.type == "meta"


def test_an_example_is_the_same_in_any_company() -> None:
    examples = [item(str(length), length, target_length=1 + length % 4) for length in (2, 9, 20)]
    together = collated(*examples)
    for row, example in enumerate(examples):
        alone = collated(example)
        for name in ("text", "target"):
            mask = getattr(together, f"{name}_mask")[row]
            assert torch.equal(
                getattr(together, f"{name}_ids")[row][mask],
                getattr(alone, f"{name}_ids")[0][getattr(alone, f"{name}_mask")[0]],
            )
            assert (getattr(together, f"{name}_ids")[row][~mask] == PAD).all()
        assert torch.equal(together.visual_tokens[row], alone.visual_tokens[0])
        assert torch.equal(together.boxes[row], alone.boxes[0])
