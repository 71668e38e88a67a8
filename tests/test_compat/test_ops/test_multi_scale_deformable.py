"""Multi-scale deformable attention against mmcv's PyTorch version: on a CPU, and while tracing."""

from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.deformable_attention import encoder_inputs, peak_bytes, step
from ropevit_mmdet.compat.ops import deformable
from ropevit_mmdet.compat.ops import multi_scale_deformable as ours

mmcv_module = ours.mmcv_module
# Level sizes, images, queries, heads, channels, points.
CASES = [
    (((6, 5), (3, 2), (1, 1)), 2, 7, 4, 8, 3),
    (((1, 1),), 1, 1, 1, 1, 1),
    (((1, 9), (8, 1)), 3, 5, 3, 6, 2),
    (((5, 7), (3, 4), (2, 2), (1, 1)), 1, 4, 8, 5, 4),
    (((4, 4), (4, 4)), 1, 3, 2, 48, 5),
    (((3, 5),), 2, 0, 2, 4, 2),
]
EXACT = [dict(rtol=1e-12, atol=1e-12)] + 3 * [dict(rtol=1e-10, atol=1e-10)]


def random_inputs(levels, images, queries, heads, dim, points, dtype=torch.float64, device="cpu"):
    """Value, level sizes, locations of which a part is outside the map, weights."""
    shapes = torch.tensor(levels)
    points = (images, queries, heads, len(levels), points)
    value = torch.randn(images, int(shapes.prod(1).sum()), heads, dim, dtype=torch.float64)
    locations = 2 * torch.rand(*points, 2, dtype=torch.float64) - 0.5
    weights = torch.randn(points, dtype=torch.float64)
    value, locations, weights = (x.to(device, dtype) for x in (value, locations, weights))
    return value, shapes.to(device), locations, weights


def results(form, inputs):
    """The output of a form, and the gradients of a weighted sum of it, in float64."""
    value, shapes, *others = inputs
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (value, *others)]
    output = form(leaves[0], shapes, *leaves[1:])
    grad = torch.arange(output.numel()).view(output.shape).remainder(7).sub(3)  # exact in halves
    gradients = torch.autograd.grad(output, leaves, grad.to(output))
    assert [gradient.dtype for gradient in gradients] == [leaf.dtype for leaf in leaves]
    return [tensor.detach().cpu().double() for tensor in (output, *gradients)]


def compare(form, inputs, limits):
    """The results of a form, and those of mmcv's version in float64."""
    exact = [inputs[0].double(), inputs[1], inputs[2].double(), inputs[3].double()]
    actual, expected = results(form, inputs), results(ours.mmcv_attention, exact)
    for one, other, limit in zip(actual, expected, limits, strict=True):
        assert_close(one, other, **limit, equal_nan=True)


@pytest.mark.parametrize("points_at_once", [1, 1 << 14])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_mmcv_in_float64(case, points_at_once, monkeypatch):
    monkeypatch.setattr(ours, "_POINTS_AT_ONCE", points_at_once)
    compare(ours.multi_scale_deformable_attention, random_inputs(*case), EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_that_of_the_dtype(dtype):
    value, shapes, locations, weights = random_inputs(*CASES[0])
    inputs = value.to(dtype), shapes, locations.float(), weights.float()  # as under autocast
    limit = dict(rtol=4 * torch.finfo(dtype).eps, atol=1e-4)
    compare(ours.multi_scale_deformable_attention, inputs, 4 * [limit])
    with torch.autocast("cpu", torch.bfloat16):
        compare(ours.multi_scale_deformable_attention, inputs, 4 * [limit])
        assert ours.multi_scale_deformable_attention(*inputs).dtype == dtype


def test_locations_beyond_all_maps():
    check_far_locations(ours.multi_scale_deformable_attention, "cpu")


def check_far_locations(form, device):
    """Without the gradients of locations and weights, undefined where the output is NaN."""
    value, shapes, locations, weights = random_inputs(*CASES[2], device=device)
    for query, far in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -3e9)):
        locations[1, query, 0, 0, 1, 0] = locations[2, query, 1, 1, 0, 1] = far
    inputs = value, shapes, locations, weights
    actual, expected = results(form, inputs)[:2], results(ours.mmcv_attention, inputs)[:2]
    assert expected[0].isnan().any() and expected[1].isfinite().all()
    assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_inputs_of_other_strides():
    value, shapes, locations, weights = random_inputs(*CASES[0])
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    inputs = strided, shapes, locations.flip(1), weights.expand_as(weights)
    compare(ours.multi_scale_deformable_attention, inputs, EXACT)


def test_levels_of_other_tokens_are_refused():
    value, shapes, *others = random_inputs(*CASES[0])
    with pytest.raises(RuntimeError, match="split"):
        ours.multi_scale_deformable_attention(value[:, 1:], shapes, *others)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 10), (torch.bfloat16, 20)], ids=str)
def test_memory_is_at_most_six_times_the_output(dtype, limit):
    """Of the forward pass, and with the backward pass `limit` times, gradients included."""
    attend, device = ours.multi_scale_deformable_attention, torch.device("cpu")
    inputs = encoder_inputs(448, batch=1, dtype=dtype)
    output = inputs[0].nbytes
    assert output < peak_bytes(lambda: attend(*inputs), device) <= 6 * output
    assert peak_bytes(lambda: step(attend, inputs), device) <= limit * output


@pytest.mark.parametrize("compiled", [True, False])
def test_layer_uses_it_unless_mmcv_is_compiled(compiled, monkeypatch):
    forward = None if compiled else deformable.ms_deform_attn_forward
    monkeypatch.setattr(mmcv_module, "ext_module", SimpleNamespace(ms_deform_attn_forward=forward))
    monkeypatch.setattr(mmcv_module, "IS_CUDA_AVAILABLE", True)
    name = "multi_scale_deformable_attn_pytorch"
    monkeypatch.setattr(mmcv_module, name, ours.mmcv_attention)
    ours.install()
    expected = ours.mmcv_attention if compiled else ours.multi_scale_deformable_attention
    assert getattr(mmcv_module, name) is expected
    assert mmcv_module.IS_CUDA_AVAILABLE is compiled


class Encoder(nn.Module):
    """Two feature maps through mmcv's layer, as in mmdet's encoders."""

    def __init__(self):
        super().__init__()
        self.layer = mmcv.ops.MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=True)
        nn.init.normal_(self.layer.sampling_offsets.weight, std=0.3)

    def forward(self, *maps):
        tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in maps], dim=1)
        shapes = torch.as_tensor([feature.shape[-2:] for feature in maps])
        points = tokens.new_full((len(tokens), tokens.shape[1], 2, 2), 0.4)
        return self.layer(tokens, reference_points=points, spatial_shapes=shapes)


@pytest.fixture
def encoder(monkeypatch):
    """The layer as on a CPU without a compiled mmcv, and its maps."""
    name = "multi_scale_deformable_attn_pytorch"
    monkeypatch.setattr(mmcv_module, name, ours.multi_scale_deformable_attention)
    return Encoder().eval(), (torch.randn(2, 16, 6, 5), torch.randn(2, 16, 3, 2))


def compiled_whole(encoder, maps):
    torch._dynamo.reset()
    return torch.compile(encoder, backend="eager", fullgraph=True)(*maps)


def exported(encoder, maps):
    return torch.export.export(encoder, maps, strict=True).module()(*maps)


def traced(encoder, maps):
    return torch.jit.trace(encoder, maps, check_trace=False)(*maps)


@pytest.mark.parametrize("form", [compiled_whole, exported, traced])
@pytest.mark.filterwarnings("ignore")  # mmcv's layer compares traced sizes
def test_traced_layer_equals_the_eager_one(form, encoder, monkeypatch):
    model, maps = encoder
    expected = model(*maps)
    monkeypatch.setattr(ours.GatheredAttention, "apply", None)  # not in the graph
    assert_close(form(model, maps), expected, rtol=1e-5, atol=1e-5)
