"""A loss or gradient that is not finite: named, or left out and counted."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ropevit_mmdet.engine.hooks import non_finite_guard as non_finite
from ropevit_mmdet.engine.hooks.non_finite_guard import NonFiniteError, NonFiniteGuard

NAN, INF = math.nan, math.inf


class Batches(torch.utils.data.Dataset):
    """One number per batch; what is not finite among them makes the loss so."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.metainfo = {}

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return dict(number=float(self.numbers[index]))


class Model(BaseModel):
    """Two linear layers; the second one's loss is what a batch's number breaks."""

    def __init__(self, hidden=False):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
        self.hidden = hidden  # whether only the gradient is broken, and the loss finite

    def forward(self, number, mode="loss"):
        x = torch.ones(2, 3)
        second = self.second(x).square().mean()
        if self.hidden and not math.isfinite(float(number)):
            second = second + _Breaks.apply(self.second.weight).sum()
        elif not self.hidden:
            second = second * number
        return dict(loss_first=self.first(x).square().mean(), loss_second=second, acc=number)


class _Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def run(directory, numbers, *, guard, model=None, wrapper=None, groups=False, **settings):
    """Train on a batch per number; the runner, also where the guard has ended the run."""
    model = model or Model()
    if wrapper is None:
        parameters = model.parameters()
        if groups:
            parameters = [
                dict(params=list(model.first.parameters()), lr=0.25, layer=3),
                dict(params=list(model.second.parameters()), lr=0.5, layer=4),
            ]
        wrapper = OptimWrapper(torch.optim.AdamW(parameters, lr=0.01), **settings)
    runner = Runner(
        model,
        work_dir=str(directory),
        train_dataloader=dict(
            batch_size=1,
            dataset=Batches(numbers),
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=len(numbers)),
        optim_wrapper=wrapper,
        default_hooks=dict(
            checkpoint=dict(type="ResumableCheckpointHook", by_epoch=False, interval=1),
            **({"non_finite": guard} if guard else {}),
        ),
        default_scope="mmdet",
        log_level="WARNING",
        experiment_name=str(directory).replace("/", "_"),
    )
    try:
        runner.train()
    except NonFiniteError as error:
        runner.error = str(error)
    else:
        runner.error = None
    return runner


def stopped(*args, **kwargs):
    return run(*args, guard=dict(type="NonFiniteGuard"), **kwargs)


def log_of(directory):
    return "".join(file.read_text() for file in directory.glob("*/*.log"))


def test_it_stops_with_step_loss_group_and_checkpoint(tmp_path):
    runner = stopped(tmp_path, [1, 1, NAN, 1], groups=True)
    assert "iteration 3: loss_second is nan; " in runner.error
    assert (
        "gradients that are not finite in parameter group 1 of 2, layer 4, learning rate 0.5 "
        "(second.weight, second.bias). The last checkpoint is" in runner.error
    )
    assert f"{tmp_path / 'iter_2.pth'}, and --resume" in runner.error
    assert not (tmp_path / "iter_3.pth").exists() and "\n" not in runner.error
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())


def test_without_a_checkpoint_it_says_so(tmp_path):
    runner = stopped(tmp_path, [INF])
    assert "iteration 1: loss_second is inf" in runner.error
    assert "There is no checkpoint in" in runner.error


def test_gradients_count_where_the_loss_is_finite(tmp_path):
    runner = stopped(tmp_path, [1, NAN, 1], model=Model(hidden=True))
    assert "iteration 2: gradients that are not finite in parameter group 0 of 1" in runner.error
    assert "(second.weight)" in runner.error  # nothing else of the group


def test_clipping_does_not_hide_where_it_came_from(tmp_path):
    clip = dict(max_norm=1.0)  # multiplies every gradient by NaN
    runner = stopped(tmp_path, [1, NAN], model=Model(hidden=True), clip_grad=clip)
    assert "(second.weight)" in runner.error


def test_within_an_accumulation_it_stops_at_once(tmp_path):
    runner = stopped(tmp_path, [1, 1, 1, 1, NAN, 1, 1, 1], accumulative_counts=4)
    assert "iteration 5: loss_second is nan; gradients that" in runner.error
    assert "iter_4.pth" in runner.error and not (tmp_path / "iter_5.pth").exists()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_steps_left_out_are_as_if_they_had_not_been(tmp_path, accumulated):
    guard = dict(type="NonFiniteGuard", action="skip")
    numbers, bad = [1, 2, 3, 4], {1: [NAN], 2: [NAN, 1.0, 1.0, INF]}[accumulated]
    torch.manual_seed(0)
    expected = run(tmp_path / "a", numbers, guard=guard, accumulative_counts=accumulated)
    torch.manual_seed(0)
    mixed = numbers[:2] + bad + numbers[2:]
    found = run(tmp_path / "b", mixed, guard=guard, accumulative_counts=accumulated)
    assert found.error is None
    torch.testing.assert_close(
        found.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0
    )
    states = (found.optim_wrapper.state_dict(), expected.optim_wrapper.state_dict())
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)
    log, count = log_of(tmp_path / "b"), len(bad) // accumulated
    assert log.count("step left out") == count
    assert f"step left out, number {count} of this run: loss_second is" in log
    assert "left out" not in log_of(tmp_path / "a")


def test_too_many_in_a_row_stop_the_run(tmp_path):
    guard = dict(type="NonFiniteGuard", action="skip", max_skips=2)
    assert run(tmp_path / "a", [NAN, NAN, 1, NAN, NAN, 1], guard=guard).error is None
    runner = run(tmp_path / "b", [1, NAN, NAN, NAN, 1], guard=guard)
    assert "iteration 4, after 2 steps left out: loss_second is nan" in runner.error


def test_the_wrapper_is_as_before_behind_a_run(tmp_path):
    runner = stopped(tmp_path, [1, 1])
    assert runner.error is None and "step" not in vars(runner.optim_wrapper)


def test_a_run_is_the_same_with_and_without_the_guard(tmp_path):
    states = []
    for name, guard in (("a", None), ("b", dict(type="NonFiniteGuard"))):
        torch.manual_seed(0)
        model = run(tmp_path / name, [1, 2, 3], guard=guard, clip_grad=dict(max_norm=0.1)).model
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


# ---- a gradient scaler


def scaled(model, monkeypatch, **settings):
    """mmengine's wrapper for mixed precision, which asks for a GPU, with a scaler for the CPU."""
    import mmengine.optim.optimizer.amp_optimizer_wrapper as module

    monkeypatch.setattr(module, "is_cuda_available", lambda: True)
    wrapper = AmpOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), lr=0.01))
    wrapper.loss_scaler = torch.amp.GradScaler("cpu", **settings)
    return wrapper


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_what_a_gradient_scaler_skips_is_counted_and_no_failure(tmp_path, monkeypatch, action):
    """Scaled by 2**120 gradients overflow, until the scaler has come down far enough."""
    model = Model()
    wrapper = scaled(model, monkeypatch, init_scale=2.0**127, backoff_factor=2.0**-20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    guard = dict(type="NonFiniteGuard", action=action)
    runner = run(tmp_path, [1e3] * 4, guard=guard, model=model, wrapper=wrapper)
    assert runner.error is None
    assert "iteration 1: step left out, number 1 of this run: gradients that" in log_of(tmp_path)
    assert log_of(tmp_path).count("left out") < 4
    assert wrapper.loss_scaler.get_scale() < 2.0**127  # there was something to skip
    changed = [not torch.equal(value, before[key]) for key, value in model.state_dict().items()]
    assert all(changed)


def test_a_loss_that_is_not_finite_stops_under_a_scaler_too(tmp_path, monkeypatch):
    model = Model()
    wrapper = scaled(model, monkeypatch)
    runner = stopped(tmp_path, [1, NAN, 1], model=model, wrapper=wrapper)
    assert "iteration 2: loss_second is nan; gradients that are not finite in" in runner.error
    assert "(second.weight, second.bias). The last checkpoint is" in runner.error
    assert f"WARNING - {runner.error.partition(str(tmp_path))[0]}" in log_of(tmp_path)


def test_a_loss_that_is_not_finite_is_skipped_and_counted_under_a_scaler_too(tmp_path, monkeypatch):
    model = Model()
    wrapper = scaled(model, monkeypatch)
    guard = dict(type="NonFiniteGuard", action="skip")
    runner = run(tmp_path, [1, NAN, 1], guard=guard, model=model, wrapper=wrapper)
    assert runner.error is None
    assert "iteration 2: step left out, number 1 of this run: loss_sec" in log_of(tmp_path)


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_steps_that_a_scaler_skips_in_a_row_are_bounded(tmp_path, monkeypatch, action):
    """A static scale does not sink."""
    model = Model(hidden=True)
    wrapper = scaled(model, monkeypatch, init_scale=8.0)
    wrapper._scale_update_param = 8.0
    guard = dict(type="NonFiniteGuard", action=action, max_skips=2)
    runner = run(tmp_path, [1, *[NAN] * 9], guard=guard, model=model, wrapper=wrapper)
    assert "iteration 4, after 2 steps left out: gradients that are not finite" in runner.error
    assert "(second.weight)" in runner.error


def test_a_scaler_that_skips_for_ever_stops_the_run(tmp_path, monkeypatch):
    model = Model(hidden=True)
    wrapper = scaled(model, monkeypatch, init_scale=2.0**-20)
    runner = stopped(tmp_path, [1, *[NAN] * 9], model=model, wrapper=wrapper)
    assert "iteration 6: gradients have been infinite or NaN for so long" in runner.error
    assert "loss scale has sunk to 3.0e-08" in runner.error


# ---- several processes, and arguments


def test_processes_decide_alike_and_each_is_heard(tmp_path, monkeypatch):
    """This one has found nothing; another has."""
    monkeypatch.setattr(non_finite, "get_world_size", lambda: 2)
    monkeypatch.setattr(non_finite, "all_reduce", lambda number, how: number.fill_(1))
    monkeypatch.setattr(non_finite, "all_gather_object", lambda own: [own, "loss_mask is inf"])
    monkeypatch.setattr(non_finite, "latest_checkpoint", lambda directory: None)
    guard = NonFiniteGuard()
    wrapper = SimpleNamespace(should_update=lambda: True)
    guard._wrappers = [wrapper]
    runner = SimpleNamespace(iter=6, work_dir=str(tmp_path))
    with pytest.raises(
        NonFiniteError, match="iteration 7: process 0: all finite; process 1: loss_mask is inf"
    ):
        guard.after_train_iter(runner, 6, outputs=dict(loss=torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(dict(action="warn"), "'stop' or 'skip', got 'warn'"), (dict(max_skips=-1), "got -1")],
)
def test_arguments_that_make_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        NonFiniteGuard(**arguments)
