"""Linear: oneDNN's result is the BLAS's up to rounding, and is used where no gradient is wanted."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ropevit_mmdet.models.layers._cpu import Linear

ONEDNN = torch.backends.mkldnn.is_available()


class Spy(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def layer(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return Linear(48, 80, bias=bias, dtype=dtype)


def plain(net, x, gelu):
    x = F.linear(x, net.weight, net.bias)
    return F.gelu(x) if gelu else x


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 7, 48), (3, 0, 48), (2, 5, 3, 48)])
def test_equal_to_the_plain_layer(shape, bias, gelu):
    net, x = layer(bias), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(net(x, gelu=gelu), plain(net, x, gelu), rtol=1e-5, atol=1e-6)
        apart = torch.randn(*shape[:-1], 96)[..., ::2]  # not contiguous
        torch.testing.assert_close(
            net(apart, gelu=gelu), plain(net, apart, gelu), rtol=1e-5, atol=1e-6
        )


@pytest.mark.skipif(not ONEDNN, reason="PyTorch was built without oneDNN")
def test_it_is_used_without_gradients_only():
    net, x = layer(), torch.randn(2, 5, 48)
    with torch.no_grad(), Spy() as spy:
        net(x)
    assert "_linear_pointwise" in spy.names
    with Spy() as spy:
        out = net(x, gelu=True)
    assert "_linear_pointwise" not in spy.names
    assert torch.equal(out, plain(net, x, True))
    out.sum().backward()
    assert net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_the_plain_way(dtype):
    net, x = layer(dtype=dtype), torch.randn(2, 5, 48, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(net(x, gelu=True), plain(net, x, True))


def test_autocast_stays_in_charge():
    net, x = layer(), torch.randn(2, 5, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16


def test_operations_are_counted():
    net, x = layer(), torch.randn(2, 5, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    assert counter.get_total_flops() == 2 * 10 * 48 * 80


def test_hooks_see_the_layer():
    net, seen = layer(), []
    net.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        net(torch.randn(4, 48), gelu=True)
    assert seen == [(4, 80)]
