"""Visual tokens as encoder inputs: the area of a box, the order of images, and the norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dept_vl.model.visual_embedding import VisualEmbedding

BOX = [0.1, 0.2, 0.4, 0.8]  # x0, y0, x1, y1: 0.3 wide and 0.6 high


def make(*, images: int = 2, tokens: int = 3, vl_t5_area: bool = False) -> VisualEmbedding:
    torch.manual_seed(0)
    return VisualEmbedding(
        feature_width=6, hidden_size=16, images=images, tokens_per_image=tokens, epsilon=1e-6, vl_t5_area=vl_t5_area
    ).double()


def inputs(batch: int = 2, images: int = 2, tokens: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, images, tokens, 6, generator=generator, dtype=torch.float64),
        torch.rand(batch, images, tokens, 4, generator=generator, dtype=torch.float64),
    )


def test_the_area_of_a_box_is_its_width_times_its_height() -> None:
    area = make()._area(torch.tensor(BOX).reshape(1, 1, 1, 4))
    assert area.item() == pytest.approx(0.3 * 0.6)


def test_the_vl_t5_area_takes_y0_for_x1_as_the_published_models_do() -> None:
    area = make(vl_t5_area=True)._area(torch.tensor(BOX).reshape(1, 1, 1, 4))
    assert area.item() == pytest.approx((0.2 - 0.1) * (0.8 - 0.4))  # 0.04


def test_the_switch_of_the_area_changes_the_embedding() -> None:
    tokens, boxes = inputs()
    assert not torch.allclose(make()(tokens, boxes), make(vl_t5_area=True)(tokens, boxes))


def test_it_is_the_sum_of_normed_features_normed_box_and_both_orders() -> None:
    embedding = make()
    tokens, boxes = inputs()
    with torch.no_grad():
        embedding.feature_norm.weight.uniform_(0.5, 1.5)
        embedding.box_norm.weight.uniform_(0.5, 1.5)
        found = embedding(tokens, boxes).unflatten(1, (2, 3))

    def t5_norm(values: Tensor, weight: Tensor) -> Tensor:
        return weight * values / (values.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    x0, y0, x1, y1 = boxes[1, 1, 2]
    box = torch.stack([x0, y0, x1, y1, (x1 - x0) * (y1 - y0)])
    expected = (
        t5_norm(embedding.feature_projection(tokens[1, 1, 2]), embedding.feature_norm.weight)
        + t5_norm(embedding.box_projection(box), embedding.box_norm.weight)
        + embedding.image_order.weight[1]
        + embedding.object_order.weight[2]
    )
    torch.testing.assert_close(found[1, 1, 2], expected, rtol=0, atol=1e-12)


def test_images_follow_one_another_each_with_its_own_order() -> None:
    embedding = make()
    tokens, boxes = inputs(batch=1)
    same = tokens[:, :1].expand(-1, 2, -1, -1), boxes[:, :1].expand(-1, 2, -1, -1)
    first, second = embedding(*same).unflatten(1, (2, 3))[0]
    difference = (embedding.image_order.weight[1] - embedding.image_order.weight[0]).expand(3, -1)
    torch.testing.assert_close(second - first, difference, rtol=0, atol=1e-12)


def test_fewer_images_and_tokens_than_it_was_built_for_use_the_first_orders() -> None:
    embedding = make()
    tokens, boxes = inputs()
    whole = embedding(tokens, boxes).unflatten(1, (2, 3))
    part = embedding(tokens[:, :1, :2], boxes[:, :1, :2])
    torch.testing.assert_close(part, whole[:, 0, :2], rtol=0, atol=1e-12)


def test_parameters_are_those_of_the_sizes_it_was_built_with() -> None:
    shapes = {name: tuple(value.shape) for name, value in make(images=2, tokens=36).named_parameters()}
    assert shapes == {
        "feature_projection.weight": (16, 6),
        "feature_projection.bias": (16,),
        "feature_norm.weight": (16,),
        "box_projection.weight": (16, 5),
        "box_projection.bias": (16,),
        "box_norm.weight": (16,),
        "image_order.weight": (2, 16),
        "object_order.weight": (36, 16),
    }
