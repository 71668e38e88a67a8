"""Masked convolution of the fallback, in tests of guided anchoring (arXiv 1901.03278)."""

import torch
import torch.nn.functional as F


def masked_im2col_forward(
    im, mask_h_idx, mask_w_idx, col, kernel_h, kernel_w, pad_h, pad_w
) -> None:
    """Fills `col` [C * kernel_h * kernel_w, n] with the windows of `im` [1, C, H, W] at n cells."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    offsets = [(row, column) for row in range(kernel_h) for column in range(kernel_w)]
    windows = [padded[:, mask_h_idx + row, mask_w_idx + column] for row, column in offsets]
    col.copy_(torch.stack(windows, dim=1).flatten(0, 1))


def masked_col2im_forward(col, mask_h_idx, mask_w_idx, im, height, width, channels) -> None:
    """Writes the columns of `col` [C, n] into `im` [1, C, H, W] at n cells."""
    im[0, :, mask_h_idx, mask_w_idx] = col
