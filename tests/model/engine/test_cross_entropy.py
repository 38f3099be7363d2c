from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dept_vl.model.engine import cross_entropy as module
from dept_vl.model.engine.cross_entropy import cross_entropy


@pytest.mark.parametrize("chunk_numbers", [1, 100, 10_000])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    chunk_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_NUMBERS", chunk_numbers)
    torch.manual_seed(0)
    states, head, weights = torch.randn(7, 6), torch.randn(11, 6), torch.rand(7)
    targets = torch.randint(11, (7,))
    ours, whole = states.clone().requires_grad_(), states.clone().requires_grad_()

    losses = cross_entropy(ours, head, targets)
    wanted = functional.cross_entropy(whole @ head.T, targets, reduction="none")
    (losses * weights).sum().backward()
    (wanted * weights).sum().backward()

    torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, whole.grad, rtol=1e-5, atol=1e-6)


def test_sure_and_wrong_predictions_stay_finite() -> None:
    states = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(states, torch.eye(2), torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(1e4)
    assert states.grad is not None
    assert states.grad.tolist() == [[1.0, -1.0]]


def test_nothing_but_a_gradient_of_the_states_is_kept() -> None:
    states = torch.randn(5, 4, requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda one: one):
        cross_entropy(states, torch.randn(1000, 4), torch.zeros(5, dtype=torch.long))
    assert kept == [torch.Size([5, 4])]


def test_in_bf16_losses_are_fp32_and_gradients_bf16() -> None:
    states = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    losses = cross_entropy(states, torch.randn(9, 8, dtype=torch.bfloat16), torch.tensor([1, 2, 3]))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert states.grad is not None
    assert states.grad.dtype == torch.bfloat16
