"""Focal losses of the stand-in, through mmcv's wrappers, against mmdet's Python version.

mmcv compiles them for GPUs only: the wrappers are given the stand-in, whichever mmcv is installed.
"""

from ropevit_mmdet import compat  # isort: skip  (it must precede mmcv.ops)

import importlib

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.testing import assert_close

NUM_CLASSES = 5


@pytest.fixture(autouse=True)
def standin_only(monkeypatch):
    module = importlib.import_module("mmcv.ops.focal_loss")
    monkeypatch.setattr(module, "ext_module", compat.ops.build_module())


def logits_and_targets(dtype=torch.float64, count=40):
    """Logits [N, C] and classes [N], background (the number of classes) among them."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(count, NUM_CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.arange(count).flip(0) % (NUM_CLASSES + 1)
    return logits.to(dtype), targets


def one_hot(targets):
    return F.one_hot(targets, NUM_CLASSES + 1)[:, :NUM_CLASSES]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_sigmoid_focal_loss_is_mmdets(reduction, gamma, dtype, tolerance):
    logits, targets = logits_and_targets(dtype)
    ours = logits.clone().requires_grad_()
    theirs = logits.double().requires_grad_()
    loss = mmcv.ops.sigmoid_focal_loss(ours, targets, gamma, 0.3, None, reduction)
    expected = py_sigmoid_focal_loss(
        theirs, one_hot(targets), gamma=gamma, alpha=0.3, reduction="none"
    )
    if reduction != "none":  # mmcv's mean is over rows, mmdet's over elements
        expected = expected.sum() / (len(logits) if reduction == "mean" else 1)
    assert loss.dtype == dtype
    assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    expected.sum().backward()
    assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def test_sigmoid_focal_loss_module_with_class_weights():
    logits, targets = logits_and_targets()
    weight = torch.tensor([0.5, 1, 2, 3, 4], dtype=torch.float64)
    loss = mmcv.ops.SigmoidFocalLoss(2.0, 0.25, weight, "none")(logits, targets)
    expected = py_sigmoid_focal_loss(logits, one_hot(targets), reduction="none")
    rows = torch.tensor([*weight.tolist(), 1.0], dtype=torch.float64)[targets]  # background: 1
    assert_close(loss, expected * rows[:, None], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 3.0, 4.0]])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 2.5])
def test_sigmoid_focal_loss_gradcheck(gamma, weight):
    logits, targets = logits_and_targets(count=4)
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)

    def loss(values):
        return mmcv.ops.sigmoid_focal_loss(values, targets, gamma, 0.25, weight, "none")

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sigmoid_focal_loss_of_huge_logits(dtype):
    """A confident mistake costs its logit, alpha aside; mmcv's GPU kernel stops at 87."""
    logits = torch.tensor([[500.0, -500.0]], dtype=dtype, requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, "none")
    assert_close(loss, torch.tensor([[0.75 * 500, 0.25 * 500]], dtype=dtype))
    loss.sum().backward()
    assert_close(logits.grad, torch.tensor([[0.75, -0.25]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sigmoid_focal_loss_in_half_precision(dtype):
    """Computed in float32: only the input and the result are rounded."""
    logits, targets = logits_and_targets(dtype)
    loss = mmcv.ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, "none")
    exact = mmcv.ops.sigmoid_focal_loss(logits.float(), targets, 2.0, 0.25, None, "none")
    assert_close(loss, exact.to(dtype), rtol=0, atol=0)


def test_empty_focal_losses():
    logits = torch.zeros(0, NUM_CLASSES, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long)
    for loss in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
        total = loss(logits, targets, 2.0, 0.25, None, "sum")
        total.backward()
        assert total == 0 and logits.grad.shape == (0, NUM_CLASSES)


def reference_softmax_focal_loss(logits, targets, gamma, alpha, weight):
    log_prob = F.log_softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    return -alpha * (1 - log_prob.exp()) ** gamma * log_prob * weight[targets]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_softmax_focal_loss(gamma):
    logits, targets = logits_and_targets()
    targets = targets % NUM_CLASSES
    weight = torch.tensor([0.5, 1, 2, 3, 4], dtype=torch.float64)
    losses = mmcv.ops.SoftmaxFocalLoss(gamma, 0.3, weight, "none")(logits, targets)
    expected = reference_softmax_focal_loss(logits, targets, gamma, 0.3, weight)
    assert_close(losses, expected, rtol=1e-9, atol=1e-9)

    def loss(values):
        return mmcv.ops.softmax_focal_loss(values, targets[:6], gamma, 0.3, weight, "mean")

    assert torch.autograd.gradcheck(loss, logits[:6].clone().requires_grad_())


def test_softmax_focal_loss_ignores_negative_classes():
    logits, targets = logits_and_targets()
    targets[:] = -1
    logits.requires_grad_()
    loss = mmcv.ops.softmax_focal_loss(logits, targets, 2.0, 0.25, None, "sum")
    loss.backward()
    assert loss == 0 and not logits.grad.any()
