"""The focal loss of the fallback, through mmcv's wrappers, against mmdet's Python version.

mmcv compiles it for GPUs only: the wrapper uses the fallback, whichever mmcv is installed.
"""

from ropevit_mmdet import compat  # isort: skip  (must precede mmcv.ops)

import importlib

import mmcv.ops
import pytest
import torch
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.testing import assert_close

NUM_CLASSES = 5
WEIGHT = torch.tensor([0.5, 1, 2, 3, 4], dtype=torch.float64)


@pytest.fixture(autouse=True)
def fallback_only(monkeypatch):
    module = importlib.import_module("mmcv.ops.focal_loss")
    monkeypatch.setattr(module, "ext_module", compat.ops.fallback_module())


def logits_and_targets(dtype=torch.float64, count=40):
    """Logits [N, C]; classes [N] with -1, which mmcv's kernel takes as background, and background
    (the number of classes) among them.
    """
    logits = 4 * torch.randn(count, NUM_CLASSES, dtype=torch.float64)
    return logits.to(dtype), torch.arange(count).flip(0) % (NUM_CLASSES + 2) - 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_sigmoid_focal_loss_is_mmdets(reduction, gamma, dtype, tolerance):
    logits, targets = logits_and_targets(dtype)
    one_hot = (targets[:, None] == torch.arange(NUM_CLASSES)).long()
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = mmcv.ops.sigmoid_focal_loss(ours, targets, gamma, 0.3, None, reduction)
    expected = py_sigmoid_focal_loss(theirs, one_hot, gamma=gamma, alpha=0.3, reduction="none")
    if reduction != "none":  # mmcv's mean is over rows, mmdet's over elements
        expected = expected.sum() / (len(logits) if reduction == "mean" else 1)
    assert loss.dtype == dtype
    assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    expected.sum().backward()
    assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def test_sigmoid_focal_loss_module_with_class_weights():
    logits, targets = logits_and_targets()
    loss = mmcv.ops.SigmoidFocalLoss(2.0, 0.25, WEIGHT, "none")(logits, targets)
    unweighted = mmcv.ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, "none")
    rows = torch.tensor([*WEIGHT.tolist(), 1.0])[targets]  # background: 1
    assert_close(loss, unweighted * rows[:, None], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_sigmoid_focal_loss_gradcheck(weight):
    logits, targets = logits_and_targets(count=7)
    arguments = (targets, 2.5, 0.25, weight, "none")
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.sigmoid_focal_loss(x, *arguments), logits.requires_grad_()
    )


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


def test_empty_focal_loss():
    logits = torch.zeros(0, NUM_CLASSES, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long)
    total = mmcv.ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, "sum")
    total.backward()
    assert total == 0 and logits.grad.shape == (0, NUM_CLASSES)
