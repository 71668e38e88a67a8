"""Deformable convolutions and attention of the fallback, on torchvision's kernels and grid_sample.

Outputs and gradients are written into the tensors passed in, as mmcv expects. Geometry comes by
keyword: kernel size, stride, padding and dilation per axis, groups.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ropevit_mmdet.compat.ops._kernels import torchvision_ops, working_dtype

# Names of mmcv in the order of torchvision, which infers the kernel size.
V1_GEOMETRY = "dH dW padH padW dilationH dilationW group deformable_group".split()
V2_GEOMETRY = "stride_h stride_w pad_h pad_w dilation_h dilation_w group deformable_group".split()


def deform_conv_forward(input, weight, offset, output, columns, ones, **geometry) -> None:
    """Fills `output` [B, O, H', W'] by deformable convolution (Dai et al., arXiv 1703.06211)."""
    output.copy_(torchvision_ops().deform_conv2d(*_v1_arguments(input, weight, offset, geometry)))


def deform_conv_backward_input(
    input, offset, grad_output, grad_input, grad_offset, weight, columns, **geometry
) -> None:
    """Fills `grad_input` and `grad_offset`."""
    grads = _gradients(grad_output, _v1_arguments(input, weight, offset, geometry))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input, offset, grad_output, grad_weight, columns, ones, scale, **geometry
) -> None:
    """Adds `scale` times the gradient of the kernel to `grad_weight`.

    mmcv does not pass the kernel, and the gradient needs only its shape, that of `grad_weight`.
    """
    grads = _gradients(grad_output, _v1_arguments(input, grad_weight, offset, geometry))
    grad_weight.add_(grads[1].to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input, weight, bias, ones, offset, mask, output, columns, **geometry
) -> None:
    """Fills `output` [B, O, H', W'] by modulated convolution (Zhu et al., arXiv 1811.11168)."""
    arguments = _v2_arguments(input, weight, offset, mask, bias, geometry)
    output.copy_(torchvision_ops().deform_conv2d(*arguments))


def modulated_deform_conv_backward(
    input, weight, bias, ones, offset, mask, columns, *gradients, **geometry
) -> None:
    """Fills the first five of `gradients` from the sixth, that of the output."""
    grad_input, grad_weight, grad_bias, grad_offset, grad_mask, grad_output = gradients
    arguments = _v2_arguments(input, weight, offset, mask, bias, geometry)
    *grads, bias = _gradients(grad_output, arguments)
    for target, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads, strict=True):
        unused = target.shape[1:].numel() - grad.shape[1:].numel()
        target.copy_(F.pad(grad.flatten(1), (0, unused)).view(target.shape))
    if geometry["with_bias"]:
        grad_bias.copy_(bias)


def ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159) by mmcv's torch version.

    Shapes: value [B, N, h, D], shapes [L, 2] ((height, width) of each level), locations
    [B, Q, h, L, P, 2] ((x, y) in 0..1), weights [B, Q, h, L, P] -> [B, Q, h * D].
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_backward(
    value, shapes, starts, locations, weights, grad_output, *targets, im2col_step
) -> None:
    """Fills `targets`, the gradients of value, locations and weights; repeats the forward pass."""
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in (value, locations, weights)]
        value, locations, weights = leaves
        output = ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step)
        grads = torch.autograd.grad(output, leaves, grad_output)
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)


def _gradients(grad_output: Tensor, arguments: tuple) -> tuple[Tensor, ...]:
    """Gradients of (input, weight, offset, mask, bias)."""
    grad_output = grad_output.to(working_dtype(grad_output.dtype))
    return torchvision_ops()._deform_conv2d_backward(grad_output, *arguments)


def _v1_arguments(input: Tensor, weight: Tensor, offset: Tensor, geometry: dict[str, int]) -> tuple:
    """Arguments of torchvision, with an empty mask and no bias."""
    tensors = (input, weight, offset, input.new_zeros(len(input), 1), weight.new_zeros(len(weight)))
    return *_for_kernel(*tensors), *(geometry[name] for name in V1_GEOMETRY), False


def _v2_arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, geometry: dict
) -> tuple:
    """Arguments of torchvision, which needs a bias, and offset and mask of the output's size."""
    bias = bias if geometry["with_bias"] else weight.new_zeros(len(weight))
    rows, columns = (
        (side + 2 * geometry[f"pad_{axis}"] - geometry[f"dilation_{axis}"] * (kernel - 1) - 1)
        // geometry[f"stride_{axis}"]
        + 1
        for axis, side, kernel in zip("hw", input.shape[2:], weight.shape[2:])
    )
    taps = geometry["deformable_group"] * weight.shape[2:].numel()
    offset, mask = _first(offset, 2 * taps, rows, columns), _first(mask, taps, rows, columns)
    tensors = (input, weight, offset, mask, bias)
    return *_for_kernel(*tensors), *(geometry[name] for name in V2_GEOMETRY), True


def _first(tensor: Tensor, *shape: int) -> Tensor:
    """The first numbers of each image, in the shape given, of a tensor that has more of them.

    mmcv's kernel reads memory so, whatever its shape: DyHead passes the offsets of another level.
    """
    count = math.prod(shape)
    if tensor.shape[1:].numel() <= count:
        return tensor  # torchvision checks the shape
    return tensor.flatten(1)[:, :count].reshape(len(tensor), *shape)


def _for_kernel(input: Tensor, weight: Tensor, offset: Tensor, *others: Tensor) -> list[Tensor]:
    """Tensors in the working dtype; a NaN among the offsets, where torchvision's kernels read
    outside of the memory, becomes NaN in the input and so in the results."""
    input = torch.where(offset.isnan().any(), torch.nan, input)
    offset = offset.nan_to_num(0.0, torch.inf, -torch.inf)
    dtype = working_dtype(input.dtype)
    return [tensor.to(dtype) for tensor in (input, weight, offset, *others)]
