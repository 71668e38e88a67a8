"""oneDNN and pieces of a block: equal to the plain modules, and aside where something listens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from ropevit_mmdet.models.layers._cpu import linear

ACTIVATIONS = {"none": None, "gelu": nn.GELU(), "tanh": nn.GELU("tanh"), "silu": nn.SiLU()}


class Doubled(torch.Tensor):
    """A subclass with a meaning of its own, as a quantized weight."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        return 2 * result.as_subclass(torch.Tensor) if function is F.linear else result


@pytest.fixture
def fused(monkeypatch):
    """Counts the calls of oneDNN's operator."""
    calls, operator = [], torch.ops.mkldnn._linear_pointwise

    def spy(*args):
        calls.append(args)
        return operator(*args)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    return calls


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 7, 48), (3, 0, 48), (2, 5, 3, 48)])
def test_onednn_equals_the_plain_layer(shape, bias, act):
    net, act = nn.Linear(48, 80, bias=bias), ACTIVATIONS[act]
    for x in (torch.randn(shape), torch.randn(*shape[:-1], 96)[..., ::2]):
        with torch.no_grad():
            expected = net(x) if act is None else act(net(x))
            torch.testing.assert_close(linear(net, x, act), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="built without oneDNN")
def test_onednn_is_used_without_gradients_in_float32_only(fused):
    net, x = nn.Linear(48, 80), torch.randn(2, 5, 48)
    out = linear(net, x, nn.GELU())
    assert torch.equal(out, F.gelu(net(x)))
    out.sum().backward()
    assert net.weight.grad.abs().sum() > 0
    with torch.no_grad():
        linear(net.double(), x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(net.float(), x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:  # knows the plain operator
            linear(net, x, nn.GELU())
        assert counter.get_total_flops() == 2 * 10 * 48 * 80
        assert not fused
        linear(net, x, nn.GELU())
    assert len(fused) == 1


def hooked(kind):
    def change(net):
        getattr(net, f"register_{kind}")(lambda *args: None)

    return change


CHANGES = {
    "forward hook": hooked("forward_hook"),
    "forward pre-hook": hooked("forward_pre_hook"),
    "backward hook": hooked("full_backward_hook"),
    "another forward": lambda net: setattr(net, "forward", lambda x: F.linear(x, net.weight) + 5),
    "parametrization": lambda net: parametrizations.weight_norm(net),
    "pruning": lambda net: prune.l1_unstructured(net, "weight", amount=0.5),
    "tensor subclass": lambda net: setattr(net, "weight", nn.Parameter(Doubled(net.weight.data))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_is_called(change, fused):
    net, x = nn.Linear(6, 4), torch.randn(2, 6)
    CHANGES[change](net)
    with torch.no_grad():
        assert torch.equal(linear(net, x, nn.GELU()), F.gelu(net(x)))
    assert not fused
