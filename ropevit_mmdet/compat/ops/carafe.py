"""CARAFE of the fallback: upsampling by kernels that depend on the content (arXiv 1905.02188)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def carafe_forward(
    features, masks, rfeatures, routput, rmasks, output, kernel_size, group_size, scale_factor
) -> None:
    """Fills `output` [B, C, s H, s W]; `rfeatures` is what mmcv passes to the backward pass."""
    rfeatures.copy_(features)
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(
    grad_output, rfeatures, masks, rgrad_output, rgrad_input_hs, rgrad_input, rgrad_masks,
    grad_input, grad_masks, kernel_size, group_size, scale_factor,
) -> None:  # fmt: skip
    """Fills `grad_input` and `grad_masks`; repeats the forward pass."""
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in (rfeatures, masks)]
        output = _carafe(leaves[0], leaves[1], kernel_size, group_size, scale_factor)
        grads = torch.autograd.grad(output, leaves, grad_output)
    for target, grad in zip((grad_input, grad_masks), grads, strict=True):
        target.copy_(grad)


def _carafe(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    """Every output pixel weights the kernel x kernel neighbors of the cell that it lies in."""
    batch, channels, height, width = features.shape
    padded = F.pad(features, [kernel // 2] * 4).unflatten(1, (groups, -1))
    cells = (height, scale, width, scale)
    weights = masks.reshape(batch, groups, 1, kernel**2, *cells)
    output = features.new_zeros(())
    for index in range(kernel**2):
        row, column = divmod(index, kernel)
        neighbors = padded[..., row : row + height, column : column + width]
        output = output + neighbors[..., None, :, None] * weights[:, :, :, index]
    return output.reshape(batch, channels, height * scale, width * scale)
