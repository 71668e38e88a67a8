"""Focal loss of the fallback (Lin et al., arXiv 1708.02002), forward and backward.

Targets are integers: a class, or the number of classes for background. Log-sigmoid is
exact for large logits. Half precision is computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ropevit_mmdet.compat.ops._kernels import working_dtype


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha) -> None:
    """Fills `output` [N, C] with the loss of logits [N, C] against classes [N].

    `weight` is [C] or empty. A row of class c has weight[c], as in mmcv; a background row has 1,
    where mmcv's kernel reads past the end.
    """
    _, scale, margin = _towards_target(input, target, weight, alpha)
    wrong = torch.sigmoid(-margin)
    output.copy_(F.logsigmoid(margin).mul_(wrong.pow_(gamma)).mul_(scale).neg_())


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha) -> None:
    """Fills `grad_input` [N, C] with the derivative of each loss by its own logit."""
    sign, scale, margin = _towards_target(input, target, weight, alpha)
    wrong = torch.sigmoid(-margin)
    slope = F.logsigmoid(margin).mul_(torch.sigmoid(margin)).mul_(gamma).sub_(wrong)
    grad_input.copy_(slope.mul_(wrong.pow_(gamma)).mul_(scale).mul_(sign))


def _towards_target(
    logits: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(sign, scale, margin), all [N, C], of a binary decision per class; right if margin > 0."""
    logits = logits.to(working_dtype(logits.dtype))
    num_classes = logits.size(1)
    is_class = target[:, None] == torch.arange(num_classes, device=logits.device)  # [N, C]
    sign = 2 * is_class.to(logits) - 1
    scale = torch.full_like(logits, 1 - alpha).masked_fill(is_class, alpha)
    if weight.numel():
        row_weight = torch.cat((weight, weight.new_ones(1)))[target]  # the last: background
        scale = scale * row_weight.to(logits)[:, None]
    return sign, scale, sign * logits
