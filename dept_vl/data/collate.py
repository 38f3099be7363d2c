"""Items to a batch: padding, masks and types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dept_vl.data.dataset import Item
from dept_vl.data.tokens import TokenIds
from dept_vl.types import Batch

TARGET_WIDTH = 4  # tokens


def collate(
    items: Sequence[Item], *, task: str, pad_id: int, bucket_width: int, max_text_length: int, max_target_length: int
) -> Batch:
    """One batch, padded on the right.

    Texts are padded to the longest, rounded up to a multiple of ``bucket_width``, and targets to one of TARGET_WIDTH,
    neither above its greatest length, so that there are few different shapes. Visual tokens become float32 here, where
    the loader's processes share the work.
    """
    text_ids, text_mask = _pad([item.text_ids for item in items], bucket_width, max_text_length, pad_id)
    target_ids, target_mask = _pad([item.target_ids for item in items], TARGET_WIDTH, max_target_length, pad_id)
    image_rows = [item.image_rows for item in items]
    # Stacked as the store holds them, mostly float16: torch converts twice as fast as numpy.
    visual_tokens = torch.from_numpy(np.stack([item.visual_tokens for item in items])).float()
    return Batch(
        task=task,
        example_ids=tuple(item.example_id for item in items),
        text_ids=text_ids,
        text_mask=text_mask,
        visual_tokens=visual_tokens,
        boxes=torch.from_numpy(np.stack([item.boxes for item in items])),
        visual_mask=torch.from_numpy(np.stack([item.visual_mask for item in items])),
        target_ids=target_ids,
        target_mask=target_mask,
        target_weights=torch.tensor([item.target_weight for item in items], dtype=torch.float32),
        answer_scores=torch.from_numpy(np.stack([item.answer_scores for item in items])),
        image_rows=None if image_rows[0] is None else torch.tensor(image_rows, dtype=torch.int64),
    )


def _pad(
    rows: Sequence[TokenIds], width: int, greatest: int, pad_id: int
) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    length = min(-(-max(map(len, rows)) // width) * width, greatest)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = row
    mask = np.arange(length) < np.array([[len(row)] for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask)
