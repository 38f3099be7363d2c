from __future__ import annotations

import torch

from feature_extraction.digests import weight_digest

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}


def test_equal_weights_have_equal_digests_in_any_order_and_layout() -> None:
    turned = {"b": torch.tensor(1), "a": torch.arange(6.0).view(2, 3).T.contiguous().T}
    assert weight_digest(turned) == weight_digest(WEIGHTS)


def test_a_name_a_type_a_shape_or_a_value_makes_another_digest() -> None:
    others = [
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
        {**WEIGHTS, "b": torch.tensor(1, dtype=torch.int32)},
        {**WEIGHTS, "a": WEIGHTS["a"].view(3, 2)},
        {**WEIGHTS, "a": WEIGHTS["a"] + torch.tensor(2**-20)},
    ]
    assert len({weight_digest(weights) for weights in [WEIGHTS, *others]}) == 5
