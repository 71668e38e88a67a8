"""Operators of the `mmcv._ext` stand-in that sample feature maps: RoIAlign, deformable convolutions
and multi-scale deformable attention, on torchvision's kernels and torch's grid_sample.

Outputs and gradients are written into the tensors passed in. Everything but float64 is computed in
float32: torchvision has half precision on some devices only, and boxes lose pixels in it.
roi_pool is not here on purpose: torchvision rounds the box to whole cells first and mmcv does not.
"""

import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor

MAX_POOLING = 0  # pool_mode of mmcv's RoIAlign; 1 is the average


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` [R, C, aligned_height, aligned_width] from maps [B, C, H, W].

    `rois` [R, 5] are (image, x1, y1, x2, y2) in pixels, `spatial_scale` map cells per pixel and
    `sampling_ratio` samples per side of a bin, 0 for as many as it has cells. Max pooling raises
    NotImplementedError.
    """
    _refuse_max(pool_mode)
    dtype = _working_dtype(input)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input` [B, C, H, W] from the gradient of what roi_align_forward wrote."""
    _refuse_max(pool_mode)
    dtype = _working_dtype(grad_output)
    grad_output, rois = grad_output.to(dtype), rois.to(dtype)
    if grad_output.device.type == "cpu" and sampling_ratio > 0:
        # torchvision scatters one number at a time there: four to nine times slower.
        pooling = _pooling_matrix(
            rois, spatial_scale, grad_output.shape[-2:], grad_input.shape, sampling_ratio, aligned
        )
        bins = grad_output.permute(0, 2, 3, 1).reshape(-1, grad_output.size(1))  # [R * h * w, C]
        cells = grad_input.permute(0, 2, 3, 1)  # [B, H, W, C]
        cells.copy_((pooling @ bins).view(cells.shape))
        return
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois,
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry,
) -> None:
    """Fill `output` [B, O, H', W'] by deformable convolution (Dai et al., arXiv 1703.06211)."""
    settings = _v1_settings(**geometry)
    dtype = _working_dtype(input)
    tensors = _v1_tensors(input.to(dtype), weight.to(dtype), offset.to(dtype))
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *settings, False))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry,
) -> None:
    """Fill `grad_input` and `grad_offset`."""
    grads = _v1_gradients(input, offset, grad_output, weight, **geometry)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry,
) -> None:
    """Add `scale` times the gradient of the kernel to `grad_weight`.

    mmcv does not pass the kernel, nor does the gradient depend on it: `grad_weight` lends a shape.
    """
    grads = _v1_gradients(input, offset, grad_output, grad_weight, **geometry)
    grad_weight.add_(grads[1].to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **geometry,
) -> None:
    """Fill `output` [B, O, H', W'] by modulated convolution (Zhu et al., arXiv 1811.11168)."""
    settings, with_bias = _v2_settings(**geometry)
    dtype = _working_dtype(input)
    bias = bias if with_bias else weight.new_zeros(weight.size(0))
    tensors = [tensor.to(dtype) for tensor in (input, weight, offset, mask, bias)]
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *settings, True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **geometry,
) -> None:
    """Fill the five gradients, that of the bias only where there is one."""
    settings, with_bias = _v2_settings(**geometry)
    dtype = _working_dtype(input)
    bias = bias if with_bias else weight.new_zeros(weight.size(0))
    tensors = [tensor.to(dtype) for tensor in (grad_output, input, weight, offset, mask, bias)]
    grads = torch.ops.torchvision._deform_conv2d_backward(*tensors, *settings, True)
    targets = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for target, grad in zip(targets, grads, strict=True):
        if target.numel():  # mmcv's bias and its gradient are empty where there is none
            target.copy_(grad)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159) by mmcv's own torch version.

    Shapes: value [B, N, h, D], spatial shapes [L, 2] (height, width), locations [B, Q, h, L, P, 2]
    ((x, y) in 0..1), weights [B, Q, h, L, P] -> [B, Q, h * D].
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes, sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fill the gradients of value, locations and weights by running the forward pass again."""
    with torch.enable_grad():
        leaves = [
            tensor.detach().requires_grad_()
            for tensor in (value, sampling_locations, attention_weights)
        ]
        output = ms_deform_attn_forward(
            leaves[0], value_spatial_shapes, value_level_start_index, *leaves[1:], im2col_step
        )
        grads = torch.autograd.grad(output, leaves, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


OPS = (
    roi_align_forward,
    roi_align_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
)


def _refuse_max(pool_mode: int) -> None:
    if pool_mode == MAX_POOLING:
        raise NotImplementedError(
            "mmcv op 'roi_align' with pool_mode='max' has no stand-in: use pool_mode='avg', "
            "as mmdet does by default, or install a compiled mmcv in place of mmcv-lite"
        )


def _pooling_matrix(
    rois: Tensor,
    spatial_scale: float,
    bins: tuple[int, int],
    shape: tuple[int, int, int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign is linear in the map: its transposed matrix [B * H * W, R * rows * columns], sparse.

    `bins` are the (rows, columns) of a pooled RoI, `shape` is the map's, (B, C, H, W). An entry is
    the weight of a cell in a bin, the product of a weight along y and one along x.
    """
    batch, _, height, width = shape
    rows, columns = bins
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extents = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        extents = extents.clamp(min=1)
    y_cells, y_weights = _axis_weights(boxes[:, 1], extents[:, 1], rows, sampling_ratio, height)
    x_cells, x_weights = _axis_weights(boxes[:, 0], extents[:, 0], columns, sampling_ratio, width)
    first_row = rois[:, 0].long()[:, None, None] * height
    cells = (first_row + y_cells[:, :, None]) * width + x_cells[:, None]  # [R, 2sh, 2sw]
    roi = torch.arange(len(rois))[:, None, None]
    y_bins = torch.arange(rows).repeat_interleave(2 * sampling_ratio)[:, None]
    x_bins = torch.arange(columns).repeat_interleave(2 * sampling_ratio)
    pooled = ((roi * rows + y_bins) * columns + x_bins).expand(cells.shape)
    return torch.sparse_coo_tensor(
        torch.stack((cells.flatten(), pooled.flatten())),
        (y_weights[:, :, None] * x_weights[:, None]).flatten(),
        (batch * height * width, len(rois) * rows * columns),
        check_invariants=False,
    )


def _axis_weights(
    starts: Tensor, extents: Tensor, bins: int, samples: int, length: int
) -> tuple[Tensor, Tensor]:
    """The two cells that each sample of an axis lies between, and their weights: [R, 2 * s * bins].

    A sample up to one cell outside counts as on the border, one farther out as nothing.
    """
    steps = (torch.arange(bins * samples, dtype=starts.dtype) + 0.5) / samples
    places = starts[:, None] + extents[:, None] / bins * steps
    inside = (places >= -1) & (places <= length)
    places = places.clamp(0, length - 1)
    low = places.floor()
    high = (low + 1).clamp(max=length - 1)
    share = places - low
    cells = torch.stack((low, high), dim=-1).flatten(1).long()
    weights = torch.stack((1 - share, share), dim=-1) * inside[..., None] / samples
    return cells, weights.flatten(1)


def _v1_settings(
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> tuple[int, ...]:
    """torchvision's order of what mmcv passes by keyword, without what torchvision infers."""
    return (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)


def _v2_settings(
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> tuple[tuple[int, ...], bool]:
    settings = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    return settings, with_bias


def _v1_tensors(input: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    """The five tensors that torchvision wants, with an empty mask and no bias."""
    return (
        input,
        weight,
        offset,
        input.new_zeros(input.size(0), 1),
        weight.new_zeros(weight.size(0)),
    )


def _v1_gradients(
    input: Tensor, offset: Tensor, grad_output: Tensor, weight: Tensor, **geometry
) -> tuple[Tensor, ...]:
    """Gradients of (input, weight, offset, mask, bias)."""
    dtype = _working_dtype(input)
    tensors = _v1_tensors(input.to(dtype), weight.to(dtype), offset.to(dtype))
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(dtype), *tensors, *_v1_settings(**geometry), False
    )


def _working_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32
