"""The Triton kernel of RoPE: in Triton's interpreter on a CPU, and on a GPU with -m gpu."""

import pytest
import torch

from ropevit_mmdet.models.layers import rope_triton
from ropevit_mmdet.models.layers.rope import apply_rope
from tests.processes import run_python

CASES = [
    (heads, dim, rotation)
    for heads, dim in ((12, 64), (3, 48), (1, 4))  # neither needs to be a power of two
    for rotation in ("standard", "interleaved")
]


def compare(heads, dim, rotation, device, dtype):
    """The kernel's results and gradients against plain operators, on views of other strides."""
    x = torch.randn(3, 7, 3, heads, dim).to(device, dtype)[:, :, 1]
    cos, sin = torch.randn(2, 7, 1, dim).to(device)
    grad = torch.randn(3, heads, 7, dim).to(device, dtype).transpose(1, 2)
    results, second = [], []
    for function in (plain, rope_triton.ApplyRope.apply):
        leaf = x.detach().clone().requires_grad_()
        out = function(leaf, cos, sin, rotation)
        out.backward(grad)
        assert out.dtype == leaf.grad.dtype == dtype
        results.append([out.detach(), leaf.grad, function(x, cos, sin, rotation)])
        if dtype == torch.float32:
            penalty = (function(leaf, cos, sin, rotation) ** 2 * grad).sum()
            (first,) = torch.autograd.grad(penalty, leaf, create_graph=True)
            second += torch.autograd.grad((first**2).sum(), leaf)
    torch.testing.assert_close(results[1], results[0])
    if second:  # sums of many products
        torch.testing.assert_close(second[1], second[0], rtol=1e-3, atol=1e-3)


def plain(x, cos, sin, rotation):
    return apply_rope(x.double(), cos, sin, rotation).to(x.dtype)  # no kernel is for float64


@pytest.mark.skipif(rope_triton.triton is None, reason="triton is not installed")
def test_kernel_equals_plain_operators_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = run_python(__file__)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-len(CASES) :] == [f"{case} equal" for case in CASES]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_equals_plain_operators_on_a_gpu(case, dtype):
    compare(*case, "cuda", dtype)


@pytest.mark.gpu
def test_kernel_is_used_on_a_gpu():
    x = torch.randn(1, 5, 2, 8, device="cuda")
    assert rope_triton.is_supported(x) and not rope_triton.is_supported(x.double())


def test_kernel_is_not_used_on_a_cpu():
    assert not rope_triton.is_supported(torch.randn(1, 5, 2, 8))


def test_a_kernel_that_cannot_be_compiled_warns_once(monkeypatch):
    monkeypatch.setattr(rope_triton, "triton", None)
    rope_triton._compiles.cache_clear()
    try:
        with pytest.warns(UserWarning, match="slower.*: the package triton is not installed"):
            assert not rope_triton._compiles(0, torch.float32)
        assert not rope_triton._compiles(0, torch.float32)  # a second warning would fail here
    finally:
        rope_triton._compiles.cache_clear()


def test_tables_of_other_tokens_are_refused():
    x, table = torch.ones(2, 3, 1, 4), torch.ones(1, 1, 4)
    with pytest.raises(ValueError, match=r"tables \[1, 1, 4\] do not fit tokens"):
        rope_triton.launch(x, table, table, "standard", transposed=False)


if __name__ == "__main__":
    for case in CASES:
        compare(*case, "cpu", torch.float32)
        print(f"{case} equal")
