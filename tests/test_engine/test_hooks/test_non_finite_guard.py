"""A loss or gradient that is not finite: named, or skipped and counted."""

import math
from functools import partial

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp_module
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ropevit_mmdet.engine.hooks.non_finite_guard import NonFiniteError

NAN, INF = math.nan, math.inf
STOP = dict(type="NonFiniteGuard")
SKIP = dict(type="NonFiniteGuard", action="skip")


class Model(BaseModel):
    """Two linear layers; a batch's factor applies to the loss of the second."""

    def __init__(self, finite_loss=False):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
        self.finite_loss = finite_loss  # a factor that is not finite affects only the gradient

    def forward(self, factor, mode="loss"):
        x = torch.ones(2, 3)
        weight = self.second.weight
        if self.finite_loss:
            weight = weight * 1
            weight.register_hook(lambda gradient: gradient * factor.item())
        second = nn.functional.linear(x, weight, self.second.bias).square().mean()
        second = second if self.finite_loss else second * factor
        return dict(loss_first=self.first(x).square().mean(), loss_second=second, acc=factor)


def run(directory, factors, *, guard=STOP, model=None, wrapper=None, **settings):
    """Trains on a batch per factor; the runner, with the `error` of the guard or None."""
    model = model or Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    runner = Runner(
        model,
        work_dir=str(directory),
        train_dataloader=dict(
            batch_size=1,
            dataset=[dict(factor=float(factor)) for factor in factors],
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=len(factors)),
        optim_wrapper=wrapper or OptimWrapper(optimizer, **settings),
        param_scheduler=dict(type="ConstantLR", factor=1.0, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(type="ResumableCheckpointHook", by_epoch=False, interval=1),
            non_finite=guard,
        ),
        default_scope="mmdet",
        log_level="WARNING",
        experiment_name=str(directory).replace("/", "_"),
    )
    runner.error = None
    try:
        runner.train()
    except NonFiniteError as error:
        runner.error = str(error)
    return runner


def log_of(directory):
    return "".join(file.read_text() for file in directory.glob("*/*.log"))


def test_stop_names_iteration_loss_parameters_and_checkpoint(tmp_path):
    runner = run(tmp_path, [1, 1, NAN, 1])
    expected = (
        "iteration 3: loss_second is nan; gradients that are not finite in second.weight, "
        f"second.bias. --resume continues from {tmp_path / 'iter_2.pth'}. "
    )
    assert runner.error.startswith(expected) and "\n" not in runner.error
    assert f"WARNING - {expected}" in log_of(tmp_path)
    assert not (tmp_path / "iter_3.pth").exists()
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize("clip_grad", [None, dict(max_norm=1.0)], ids=["plain", "clipped"])
def test_stop_at_a_gradient_with_a_finite_loss(tmp_path, clip_grad):
    """Clipping spreads the NaN over all gradients, after the guard's check."""
    runner = run(tmp_path, [1, NAN, 1], model=Model(finite_loss=True), clip_grad=clip_grad)
    expected = "iteration 2: gradients that are not finite in second.weight. --resume"
    assert runner.error.startswith(expected)


@pytest.mark.filterwarnings("error:.*optimizer.step")  # of mmengine's schedulers
@pytest.mark.parametrize("accumulated", [1, 2])
def test_skipped_steps_change_nothing(tmp_path, accumulated):
    factors, bad = [1, 2, 3, 4], {1: [NAN], 2: [NAN, 1.0, 1.0, INF]}[accumulated]
    runs = []
    for name, sequence in (("a", factors), ("b", factors[:2] + bad + factors[2:])):
        torch.manual_seed(0)
        runs.append(run(tmp_path / name, sequence, guard=SKIP, accumulative_counts=accumulated))
    assert runs[1].error is None
    for states in zip(
        *((r.model.state_dict(), r.optim_wrapper.state_dict()["state"]) for r in runs)
    ):
        torch.testing.assert_close(*states, rtol=0, atol=0)
    log, count = log_of(tmp_path / "b"), len(bad) // accumulated
    assert log.count("step skipped") == count
    assert f"step skipped, {count} so far: loss_second is" in log
    assert "skipped" not in log_of(tmp_path / "a")


def test_too_many_skipped_steps_in_a_row_stop(tmp_path):
    guard = dict(SKIP, max_skips=2)
    assert run(tmp_path / "a", [NAN, NAN, 1, NAN, NAN, 1], guard=guard).error is None
    runner = run(tmp_path / "b", [1, NAN, NAN, NAN, 1], guard=guard)
    assert "iteration 4, after 2 skipped steps: loss_second is nan" in runner.error
    assert "There is no checkpoint yet" in run(tmp_path / "c", [INF]).error


@pytest.fixture
def scaled(monkeypatch):
    """Builds mmengine's wrapper for mixed precision with a scaler for CPUs."""
    monkeypatch.setattr(amp_module, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_module, "GradScaler", partial(torch.amp.GradScaler, "cpu"))

    def build(model, **settings):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return AmpOptimWrapper(optimizer=optimizer, loss_scale=settings or "dynamic")

    return build


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_steps_that_a_scaler_skips_are_counted_until_there_are_too_many(tmp_path, scaled, action):
    """Gradients overflow until the scale is low enough."""
    model = Model()
    wrapper = scaled(model, init_scale=2.0**127, backoff_factor=2.0**-20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    guard = dict(type="NonFiniteGuard", action=action, max_skips=2)
    runner = run(tmp_path / "a", [1e3] * 4, guard=guard, model=model, wrapper=wrapper)
    assert runner.error is None
    assert "iteration 1: step skipped, 1 so far: gradients that" in log_of(tmp_path / "a")
    assert wrapper.loss_scaler.get_scale() < 2.0**127
    assert not any(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    model = Model(finite_loss=True)
    factors = [1, *[NAN] * 9]
    runner = run(tmp_path / "b", factors, guard=guard, model=model, wrapper=scaled(model))
    assert runner.error.startswith("iteration 4, after 2 skipped steps: gradients that")
