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


def collate(items: Sequence[Item], *, task: str, pad_id: int, bucket_width: int, max_text_length: int) -> Batch:
    """One batch, padded on the right.

    Texts are padded to the longest, rounded up to a multiple of ``bucket_width`` but not above ``max_text_length``, so
    that there are few different shapes; targets to the longest. Visual tokens become float32 here, where the loader's
    processes share the work.
    """
    longest = max(len(item.text_ids) for item in items)
    text_length = min(-(-longest // bucket_width) * bucket_width, max_text_length)
    text_ids, text_mask = _pad([item.text_ids for item in items], text_length, pad_id)
    target_ids, target_mask = _pad(
        [item.target_ids for item in items], max(len(item.target_ids) for item in items), pad_id
    )
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
    )


def _pad(rows: Sequence[TokenIds], length: int, pad_id: int) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = row
    mask = np.arange(length) < np.array([[len(row)] for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask)
