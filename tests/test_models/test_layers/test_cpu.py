"""Linear: oneDNN's result equals the BLAS's up to rounding, and is used without gradients only."""

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


def plain(net, x, gelu):
    x = F.linear(x, net.weight, net.bias)
    return F.gelu(x) if gelu else x


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 7, 48), (3, 0, 48), (2, 5, 3, 48)])
def test_onednn_equals_the_plain_layer(shape, bias, gelu):
    net = Linear(48, 80, bias=bias)
    strided = torch.randn(*shape[:-1], 96)[..., ::2]
    with torch.no_grad():
        for x in (torch.randn(shape), strided):
            actual, expected = net(x, gelu=gelu), plain(net, x, gelu)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not ONEDNN, reason="PyTorch was built without oneDNN")
def test_onednn_is_used_without_gradients_only():
    net, x = Linear(48, 80), torch.randn(2, 5, 48)
    with torch.no_grad(), Spy() as spy:
        net(x)
    assert "_linear_pointwise" in spy.names
    with Spy() as spy:
        out = net(x, gelu=True)
    assert "_linear_pointwise" not in spy.names
    assert torch.equal(out, plain(net, x, True))
    out.sum().backward()
    assert net.weight.grad.abs().sum() > 0


def test_autocast_hooks_and_the_flop_counter_still_work():
    net, x, shapes = Linear(48, 80), torch.randn(2, 5, 48), []
    net.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            net(x, gelu=True)
    assert counter.get_total_flops() == 2 * 10 * 48 * 80
    assert shapes == [(2, 5, 80)] * 2
