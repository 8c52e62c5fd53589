"""Next-token loss where there are labels, without ever holding all of their logits."""

from collections.abc import Callable

import torch
from torch import nn

from modeling_parrot.language_experts_parrot import is_plain_linear


CHUNK = 2**24  # logits at a time: 64 MiB in float32


class _LabelLoss(torch.autograd.Function):
    """Summed cross-entropy of a linear head. Gradients are made with the logits, so none are stored or made twice."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        size = max(1, CHUNK // len(weight))
        for start in range(0, len(hidden), size):
            part, targets = hidden[start : start + size], labels[start : start + size, None]
            logits = nn.functional.linear(part, weight)  # [n, V]
            scores = logits.float().log_softmax(-1)
            total -= scores.gather(-1, targets).sum()
            if not (for_hidden or for_weight):
                continue
            slope = scores.exp_().scatter_add_(-1, targets, scores.new_full(targets.shape, -1)).to(logits.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + size] = slope @ weight.to(slope.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(slope.T.to(weight.dtype), part.to(weight.dtype))
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale):
        # In place, since the head's gradient may be the largest tensor there is. A second backward pass is refused by
        # autograd, which sees that what it kept has changed.
        grads = [None if grad is None else grad.mul_(scale) for grad in ctx.saved_tensors]
        return (*grads, None)


def label_loss(hidden: torch.Tensor, head: nn.Module, labels: torch.Tensor, count=None) -> torch.Tensor | None:
    """
    As `cross_entropy(head(hidden).float(), labels)`, in memory that does not grow with the number of labels. On a GPU
    with liger-kernel installed its fused kernels do it.

    Args:
        hidden: [n, C], where there is a label.
        head: the language model's head.
        labels: [n], token ids.
        count: what the sum is divided by, `n` by default (`num_items_in_batch` of the Trainer).

    Returns:
        The loss, float32 [], or None if the head is not one plain product whose weights are all here: it carries LoRA,
        is quantised or sharded, or code is being compiled. Then the head itself has to be called.
    """
    if not is_plain_linear(head) or head.bias is not None or torch.compiler.is_compiling():
        return None
    fused = _liger(hidden.device) if len(labels) else None
    if fused is not None:
        total = fused(hidden, head.weight, labels, reduction="sum").float()
    else:
        total = _LabelLoss.apply(hidden, head.weight, labels)
    return total / (max(1, len(labels)) if count is None else count)


def _liger(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """Liger's kernels for the same, on GPUs where they are installed."""
    if device.type != "cuda":
        return None
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None
    return liger_fused_linear_cross_entropy


__all__ = ["label_loss"]
