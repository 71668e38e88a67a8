"""CARAFE of the fallback against a loop over pixels, and its gradients in float64."""

import pytest
import torch
from mmcv.ops import carafe
from torch import Tensor


def by_pixel(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    """The definition (arXiv 1905.02188, equation 2); beyond the image features are 0."""
    batch, channels, height, width = features.shape
    output = features.new_zeros(batch, channels, height * scale, width * scale)
    half = kernel // 2
    for b, c, y, x in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        first = c * groups // channels * kernel**2
        for index in range(kernel**2):
            row, column = y // scale + index // kernel - half, x // scale + index % kernel - half
            if 0 <= row < height and 0 <= column < width:
                weight = masks[b, first + index, y, x]
                output[b, c, y, x] += weight * features[b, c, row, column]
    return output


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (3, 2, 3)])
def test_carafe_equals_its_definition(kernel, groups, scale):
    features = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    shape = (2, kernel**2 * groups, 3 * scale, 2 * scale)
    masks = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    actual = carafe(features, masks, kernel, groups, scale)
    assert torch.allclose(actual, by_pixel(features, masks, kernel, groups, scale), atol=1e-12)
    assert torch.autograd.gradcheck(carafe, (features, masks, kernel, groups, scale))
