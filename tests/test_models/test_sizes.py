"""A few random sizes and settings of backbone and neck; 2,000: python -m tests.sizes_trial."""

import dataclasses

import pytest
import torch

from tests import sizes_trial
from tests.sizes_trial import Case, check, try_cases

CASE = Case(
    height=60, width=90, batch=2, dtype="float32", patch_size=14, window_size=3,
    global_attn_indices=(), rope="default", rope_interpolation="pretrain",
    pos_embed_mode="tile", special_tokens=(4, True), out_indices=(0, 1), final_norm=True,
    pyramid="r-cnn", power_strides=True, divisor=14, seed=0,
)  # fmt: skip


def test_random_cases():
    seen = []
    try_cases(50, 0, lambda case, error, seconds: seen.append(case))
    assert len(set(seen)) >= 35
    assert {case.dtype for case in seen} == {"float32", "float64", "bfloat16"}


@pytest.mark.parametrize(
    "change",
    [
        dict(height=1, width=1),
        dict(height=1, width=1500, window_size=16),
        dict(height=1500, width=1499, window_size=16, batch=1),
        dict(height=225, width=1, window_size=None, global_attn_indices=None),
        dict(pyramid="coarse", height=14, width=14, batch=1),
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_extreme_cases(change):
    check(dataclasses.replace(CASE, **change))


def test_the_trial_detects_injected_failures(monkeypatch):
    """Information between windows or images, a lost column, padding that is not zeros."""
    case = dataclasses.replace(CASE, divisor=1)
    check(case)
    forward = sizes_trial.RoPEViT.forward
    leak = lambda self, x: tuple(m + 1e-3 * x.mean((1, 2, 3), True) for m in forward(self, x))  # noqa: E731
    mixed = lambda self, x: tuple(m + 0.1 * m.mean(0) for m in forward(self, x))  # noqa: E731
    cut = lambda self, x: tuple(m[..., :-1] for m in forward(self, x))  # noqa: E731
    late = lambda self, x: forward(self, x + (x == 0))  # noqa: E731
    for wrong in (leak, mixed, cut, late):
        monkeypatch.setattr(sizes_trial.RoPEViT, "forward", wrong)
        with pytest.raises(AssertionError):
            check(case)


def test_a_failing_case_is_reported(monkeypatch, capsys, tmp_path):
    def fail(case: Case) -> None:
        assert case.height < 50, "too high"

    monkeypatch.setattr(sizes_trial, "check", fail)
    assert sizes_trial.main(["--cases", "10", "--log", str(tmp_path / "log")]) == 1
    out = capsys.readouterr().out
    assert "one failed" in out and "too high" in out and "height=" in out
    assert '"error": "AssertionError: too high' in (tmp_path / "log").read_text()
    assert torch.get_default_dtype() == torch.float32
