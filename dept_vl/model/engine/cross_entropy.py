"""Cross-entropy through a frozen output head, without a tensor of tokens times vocabulary."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CHUNK_NUMBERS = 2**24  # logits that exist at a time: 64 MiB in fp32


def cross_entropy(
    states: Float[Tensor, "tokens H"], head: Float[Tensor, "vocabulary H"], targets: Int64[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """The negative log-likelihood of each target, in fp32; the gradient goes to the states alone.

    The gradient with respect to a state, ``(softmax(logits) - onehot(target)) @ head``, is made chunk by chunk in the
    forward pass, where the logits are at hand, so that none of them is kept.
    """
    return cast(Tensor, cast(Any, _FrozenHeadEntropy).apply(states, head, targets))


class _FrozenHeadEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor) -> Tensor:  # noqa: ANN401
        size = max(CHUNK_NUMBERS // len(head), 1)
        losses, gradients = [], []
        for some, wanted in zip(torch.split(states, size), torch.split(targets, size), strict=True):
            logits = (some @ head.T).float()
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            losses.append((log_sum - logits.gather(1, wanted[:, None])).squeeze(1))
            if ctx.needs_input_grad[0]:
                share = logits.sub_(log_sum).exp_()
                share.scatter_add_(1, wanted[:, None], share.new_full((len(share), 1), -1.0))
                gradients.append(share.to(head.dtype) @ head)
        ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (by_state,) = ctx.saved_tensors
        return (gradient[:, None] * by_state).to(by_state.dtype), None, None
