"""The masked convolution of the fallback: a convolution at the cells of the mask, 0 elsewhere."""

import torch
import torch.nn.functional as F
from mmcv.ops import masked_conv2d


def test_masked_conv_equals_a_convolution_where_the_mask_is():
    features = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    weight, bias = torch.randn(4, 3, 3, 1).double(), torch.randn(4).double()
    mask = torch.rand(1, 6, 5) > 0.5
    expected = F.conv2d(features, weight, bias, padding=(1, 0)) * mask
    actual = masked_conv2d(features, mask, weight, bias, (1, 0))
    assert torch.allclose(actual, expected, atol=1e-12)
    nothing = masked_conv2d(features, torch.zeros_like(mask), weight, bias, (1, 0))
    assert not nothing.any()
