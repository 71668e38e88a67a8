"""The Triton kernel of deformable attention: in Triton's interpreter, and on a GPU with -m gpu."""

import ropevit_mmdet  # isort: skip  # noqa: F401  (must precede mmcv.ops)

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close

from benchmarks.deformable_attention import encoder_inputs, measure
from ropevit_mmdet.compat.ops import multi_scale_deformable as ours
from ropevit_mmdet.compat.ops import multi_scale_deformable_triton as kernel
from tests.processes import run_python
from tests.test_compat.test_ops.test_multi_scale_deformable import (
    CASES,
    EXACT,
    check_far_locations,
    compare,
    random_inputs,
)

needs_triton = pytest.mark.skipif(kernel.triton is None, reason="triton is not installed")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def check(case, dtype, device):
    """The kernel's results and gradients against mmcv's version in float64."""
    value, shapes, locations, weights = random_inputs(*case, dtype=dtype, device=device)
    value = value.transpose(1, 2).contiguous().transpose(1, 2)  # of other strides
    eps = torch.finfo(dtype).eps
    limits = EXACT if dtype == torch.float64 else 4 * [dict(rtol=8 * eps, atol=8 * eps + 1e-4)]
    compare(kernel.TritonAttention.apply, (value, shapes, locations, weights), limits)


def check_autocast(dtype, device):
    """Values in half precision and locations in float32."""
    value, shapes, *others = random_inputs(*CASES[2], dtype=torch.float32, device=device)
    limit = dict(rtol=4 * torch.finfo(dtype).eps, atol=1e-4)
    compare(kernel.TritonAttention.apply, (value.to(dtype), shapes, *others), 4 * [limit])


@needs_triton
def test_kernel_equals_mmcv_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = run_python("-W", "ignore", __file__)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")  # the fork prints more


@needs_triton
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.filterwarnings("ignore:TRITON")
def test_kernel_compiles_for_a_gpu_that_is_not_there(backward, monkeypatch, tmp_path):
    """The interpreter accepts what the compiler does not."""
    from triton import language as tl
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = dict(dim=32, row_block=32, dim_block=32, backward=backward, exact=tl.float32)
    types = dict.fromkeys(("shapes", "starts"), "*i64")
    types |= dict.fromkeys(("value", "output"), "*bf16") | dict.fromkeys(constants, "constexpr")
    floats = "locations weights grad_value grad_locations grad_weights".split()
    types |= dict.fromkeys(floats, "*fp32")
    signature = {name: types.get(name, "i32") for name in kernel._kernel.arg_names}
    source = kernel.triton.compiler.ASTSource(kernel._kernel, signature, constants)
    code = kernel.triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert ("red.global" in code) == backward


def test_kernel_is_not_used_on_a_cpu():
    assert not kernel.is_supported(torch.randn(1, 5, 2, 8), ours.mmcv_attention)


@pytest.fixture
def unchecked():
    kernel._works.cache_clear()
    yield
    kernel._works.cache_clear()


@pytest.mark.parametrize("reason", ["the package triton is not installed", "results differ"])
def test_a_kernel_that_does_not_work_warns_once(reason, monkeypatch, unchecked):
    def fail(*args):
        raise AssertionError(f"\n{reason}\nmore")

    monkeypatch.setattr(kernel, "triton", None if "installed" in reason else object())
    monkeypatch.setattr(kernel, "_check", fail)
    with pytest.warns(UserWarning, match=f"grid_sample replaces it: {reason}$"):
        assert not kernel._works(0, torch.float32, ours.mmcv_attention)
    assert not kernel._works(0, torch.float32, ours.mmcv_attention)  # a second would fail here


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_equals_mmcv_on_a_gpu(case, dtype):
    check(case, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_kernel_under_autocast(dtype):
    check_autocast(dtype, "cuda")


@pytest.mark.gpu
def test_locations_beyond_all_maps_on_a_gpu():
    check_far_locations(kernel.TritonAttention.apply, "cuda")


@pytest.mark.gpu
def test_kernel_is_used_on_a_gpu_unless_results_must_repeat():
    value = torch.randn(1, 5, 2, 8, device="cuda")
    assert all(kernel.is_supported(value.to(dtype), ours.mmcv_attention) for dtype in DTYPES)
    torch.use_deterministic_algorithms(True)  # conftest restores it
    assert not kernel.is_supported(value, ours.mmcv_attention)


@pytest.mark.gpu
def test_layer_under_autocast_rounds_no_locations():
    """At 64 tokens a side, locations in bfloat16 would be off by a quarter of a token."""
    layer = mmcv.ops.MultiScaleDeformableAttention(32, 4, 1, 2, dropout=0.0, batch_first=True)
    query, points = torch.randn(1, 64 * 64, 32), torch.rand(1, 64 * 64, 1, 2)
    shapes = torch.tensor([[64, 64]])
    expected = layer(query, reference_points=points, spatial_shapes=shapes)
    with torch.autocast("cuda", torch.bfloat16):
        query, points, shapes = query.cuda(), points.cuda(), shapes.cuda()
        actual = layer.cuda()(query, reference_points=points, spatial_shapes=shapes)
    assert_close(actual.cpu().float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.gpu
def test_kernel_is_three_times_as_fast_in_the_memory_of_its_output():
    inputs = encoder_inputs(896, batch=2, device="cuda", dtype=torch.bfloat16)
    rows = measure(inputs, runs=20)
    (*_, mmcv_seconds, _, _), (*_, seconds, forward, _) = rows["mmcv"], rows["ours"]
    assert mmcv_seconds >= 3 * seconds and forward <= 1.5


if __name__ == "__main__":
    check_far_locations(kernel.TritonAttention.apply, "cpu")
    kernel._TILE = 256  # several programs
    for case in (CASES[1], CASES[2], CASES[-1]):
        check(case, torch.float64, "cpu")
    for dtype in DTYPES[2:]:
        check_autocast(dtype, "cpu")
    print("equal")
