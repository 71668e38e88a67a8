"""The kernel for rotary positions: in Triton's interpreter on a CPU, and on a GPU with -m gpu."""

import pytest
import torch

from ropevit_mmdet.models.layers import rope_triton as rope_kernel
from ropevit_mmdet.models.layers.rope import rotate
from tests.processes import run_python

CASES = [
    (heads, dim, rotation)
    for heads, dim in ((12, 64), (3, 48), (1, 4))  # neither needs to be a power of two
    for rotation in ("standard", "interleaved")
]
needs_triton = pytest.mark.skipif(rope_kernel.triton is None, reason="triton is not installed")


def compare(heads, dim, rotation, device, dtype):
    """The kernel's results and gradients against plain operators, on views of other strides."""
    x = torch.randn(3, 7, 3, heads, dim).to(device, dtype)[:, :, 1]
    cos, sin = torch.randn(2, 7, 1, dim).to(device)
    grad = torch.randn(3, heads, 7, dim).to(device, dtype).transpose(1, 2)
    results, second = [], []
    for turn in (plain, rope_kernel.Turn.apply):
        leaf = x.detach().clone().requires_grad_()
        turned = turn(leaf, cos, sin, rotation)
        turned.backward(grad)
        assert turned.dtype == leaf.grad.dtype == dtype
        results.append([turned.detach(), leaf.grad, turn(x, cos, sin, rotation)])
        if dtype == torch.float32:
            penalty = (turn(leaf, cos, sin, rotation) ** 2 * grad).sum()
            (first,) = torch.autograd.grad(penalty, leaf, create_graph=True)
            second += torch.autograd.grad((first**2).sum(), leaf)
    torch.testing.assert_close(results[1], results[0])
    if second:  # sums of many products
        torch.testing.assert_close(second[1], second[0], rtol=1e-3, atol=1e-3)


def plain(x, cos, sin, rotation):
    return rotate(x.double(), cos, sin, rotation).to(x.dtype)  # no kernel is for float64


@needs_triton
def test_the_kernel_turns_as_plain_operators_do(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = run_python(__file__)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{case} held" for case in CASES]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_so_it_does_on_a_gpu(case, dtype):
    compare(*case, "cuda", dtype)


@pytest.mark.gpu
def test_it_is_used_on_a_gpu():
    x = torch.randn(1, 5, 2, 8, device="cuda")
    assert rope_kernel.can_turn(x) and not rope_kernel.can_turn(x.double())


def test_a_cpu_does_without():
    assert not rope_kernel.can_turn(torch.randn(1, 5, 2, 8))


def test_where_it_cannot_be_built_a_line_says_so(monkeypatch):
    monkeypatch.setattr(rope_kernel, "triton", None)
    rope_kernel._works.cache_clear()
    try:
        with pytest.warns(UserWarning, match="take longer: the package triton is not installed"):
            assert not rope_kernel._works(0, torch.float32)
        assert not rope_kernel._works(0, torch.float32)  # and says no more
    finally:
        rope_kernel._works.cache_clear()


def test_tables_of_other_tokens_are_refused():
    x, table = torch.ones(2, 3, 1, 4), torch.ones(1, 1, 4)
    with pytest.raises(ValueError, match=r"tables \[1, 1, 4\] do not belong to tokens"):
        rope_kernel.launch(x, table, table, "standard", transposed=False)


if __name__ == "__main__":
    for case in CASES:
        compare(*case, "cpu", torch.float32)
        print(f"{case} held")
