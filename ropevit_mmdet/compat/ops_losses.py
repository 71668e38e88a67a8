"""Focal losses of the `mmcv._ext` stand-in (Lin et al., arXiv 1708.02002), forward and backward.

Targets are integers: a class, or the number of classes for background. The sigmoid losses work on
logits throughout (log-sigmoid), so large ones stay exact. Half precision is computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `output` [N, C] with the loss of logits [N, C] against classes [N].

    `weight` is [C] or empty. A row of class c weighs weight[c], as in mmcv; a background row weighs
    1, where mmcv's kernel reads past the end.
    """
    sign, scale, margin = _towards_target(input, target, weight, alpha)
    wrong = torch.sigmoid(-margin)
    output.copy_(F.logsigmoid(margin).mul_(wrong.pow_(gamma)).mul_(scale).neg_())


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `grad_input` [N, C] with the derivative of each loss by its own logit."""
    sign, scale, margin = _towards_target(input, target, weight, alpha)
    wrong = torch.sigmoid(-margin)
    slope = F.logsigmoid(margin).mul_(torch.sigmoid(margin)).mul_(gamma).sub_(wrong)
    grad_input.copy_(slope.mul_(wrong.pow_(gamma)).mul_(scale).mul_(sign))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `output` [N] with the loss of probabilities [N, C] for classes [N]; class -1 costs 0."""
    prob, scale = _target_probability(input, target, weight, alpha)
    output.copy_(-scale * (1 - prob).pow(gamma) * _safe_log(prob))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fill `grad_input` [N, C] with the derivative by the logits that gave the probabilities."""
    prob, scale = _target_probability(input, target, weight, alpha)
    wrong = 1 - prob
    focus = gamma * wrong.pow(gamma - 1) * prob * _safe_log(prob) if gamma else 0
    slope = scale * (focus - wrong.pow(gamma))
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_is_class(input, target).to(slope) - input.to(slope)))


OPS = (
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    softmax_focal_loss_forward,
    softmax_focal_loss_backward,
)


def _towards_target(
    logits: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(sign, scale, margin), all [N, C], of a yes or no per class; a positive margin is right."""
    logits = logits.to(_working_dtype(logits))
    is_class = _is_class(logits, target)
    sign = 2 * is_class.to(logits) - 1
    scale = torch.full_like(logits, 1 - alpha).masked_fill(is_class, alpha)
    if weight.numel():
        scale = scale * _row_weight(weight, target, logits.size(1)).to(logits)[:, None]
    return sign, scale, sign * logits


def _target_probability(
    probs: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """(probability of the target class, scale), both [N]; scale 0 where the target is negative."""
    probs = probs.to(_working_dtype(probs))
    prob = probs.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    scale = torch.full_like(prob, alpha).masked_fill(target < 0, 0)
    if weight.numel():
        scale = scale * _row_weight(weight, target, probs.size(1)).to(probs)
    return prob, scale


def _is_class(scores: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(scores.size(1), device=scores.device)  # [N, C]


def _row_weight(weight: Tensor, target: Tensor, num_classes: int) -> Tensor:
    has_class = (target >= 0) & (target < num_classes)
    return torch.where(has_class, weight[target.clamp(0, num_classes - 1)], 1)


def _safe_log(prob: Tensor) -> Tensor:
    return prob.clamp(min=torch.finfo(torch.float32).tiny).log()


def _working_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32
