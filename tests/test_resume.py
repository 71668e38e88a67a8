"""A run that was killed and resumed ends with the weights of one that never stopped, to the bit."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend

from ropevit_mmdet.resume import latest_checkpoint, random_states, set_random_states
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny

# A picture's flip is drawn by numpy, its drop path by torch: both must go on where they were.
CONFIG = """
_base_ = './tiny.py'
model = dict(
    backbone=dict(_delete_=True, type='RoPEViT', pretrain_img_size=64, drop_path_rate=0.5,
                  window_size=2, arch=dict(patch_size=16, num_layers=2, num_heads=2, hidden_dim=16,
                                           mlp_dim=32)),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=16, in_stride=16,
              out_channels=16, scale_factors=(1, 0.5), num_outs=2),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                          'scale_factor')),
]
train_dataloader = dict(num_workers={workers}, persistent_workers={workers} > 0,
                        sampler=dict(type={sampler!r}, shuffle=True),
                        dataset=dict(pipeline=pipeline))
train_cfg = dict(_delete_=True, **{loop})
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts={accumulated})
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=8)]
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', by_epoch={by_epoch},
                                     interval={interval}, max_keep_ckpts=2, save_best=None))
custom_hooks = [dict(type='EMAHook', momentum=0.1)] if {ema} else []
"""
KILLED = """
import os, signal, sys
from pathlib import Path
import ropevit_mmdet
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

config, work_dir, iteration, moment = sys.argv[1:]


@HOOKS.register_module()
class Kill(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(iteration):
            if moment == "now":
                os.kill(os.getpid(), signal.SIGKILL)
            Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # written, not renamed


config = Config.fromfile(config)
config.work_dir = work_dir
config.custom_hooks = [*config.custom_hooks, dict(type="Kill", priority="VERY_HIGH")]
Runner.from_cfg(config).train()
"""
ITERATIONS = dict(type="IterBasedTrainLoop", max_iters=9, val_interval=2)
EPOCHS = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)
CASES = {
    "iterations, workers, accumulation, EMA": (
        dict(loop=ITERATIONS, workers=2, accumulated=2, ema=True),
        8,
        "now",
    ),
    "iterations, while writing": (
        dict(loop=ITERATIONS, workers=0, accumulated=2, ema=False),
        6,
        "writing",
    ),
    "epochs, persistent workers, accumulation, EMA": (
        dict(loop=EPOCHS, workers=1, accumulated=3, ema=True),
        6,
        "now",
    ),
}


def write_config(folder, *, loop, workers, accumulated, ema):
    write_tiny(folder)
    by_epoch = loop is EPOCHS
    text = CONFIG.format(
        loop=loop,
        workers=workers,
        accumulated=accumulated,
        ema=ema,
        by_epoch=by_epoch,
        sampler="DefaultSampler" if by_epoch else "InfiniteSampler",
        interval=1 if by_epoch else 3,
    )
    path = folder / "resumed.py"
    path.write_text(text)
    return path


def train(config, work_dir, *, resume=False):
    """Train in a process of its own; the last checkpoint."""
    argv = [config, "--work-dir", work_dir] + ["--resume"] * resume
    done = run_python(ROOT / "tools" / "train.py", *argv)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(latest_checkpoint(work_dir), weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_bit(name, tmp_path):
    settings, iteration, moment = CASES[name]
    config = write_config(tmp_path, **settings)
    expected = train(config, tmp_path / "whole")

    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = run_python(script, config, tmp_path / "killed", iteration, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert latest_checkpoint(tmp_path / "killed") is not None
    resumed = train(config, tmp_path / "killed", resume=True)

    assert resumed["meta"]["iter"] == expected["meta"]["iter"]
    for key in ("state_dict", "ema_state_dict", "optimizer"):
        assert (key in resumed) == (key in expected) == (key != "ema_state_dict" or settings["ema"])
        torch.testing.assert_close(resumed.get(key), expected.get(key), rtol=0, atol=0)
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_one_best_and_the_last_checkpoints_are_kept(tmp_path):
    config = write_config(tmp_path, loop=ITERATIONS, workers=0, accumulated=1, ema=False)
    text = config.read_text().replace("save_best=None", "save_best='auto', published_keys=['meta']")
    config.write_text(text)
    train(config, tmp_path / "run")
    names = sorted(file.name for file in (tmp_path / "run").glob("*.pth"))
    kept = [name for name in names if "-" not in name]  # the others mmengine publishes, by hash
    assert kept[1:] == ["iter_6.pth", "iter_9.pth"] and kept[0].startswith("best_")
    assert len(names) - len(kept) == 2


def test_random_states_go_through_a_file(tmp_path):
    random.gauss(0, 1), np.random.standard_normal(), torch.randn(1)  # half of a pair is kept
    torch.save(random_states(), tmp_path / "states.pt")
    draws = [(random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist())]
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    draws.append((random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        torch.save(dict(weights=torch.rand(1000)), tmp_path / f"iter_{step}.pth")
        os.utime(tmp_path / f"iter_{step}.pth", (step, step))
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    assert latest_checkpoint(tmp_path).name == "iter_2.pth"

    whole = (tmp_path / "iter_2.pth").read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", whole[:900] + b"!" + whole[901:]):
        (tmp_path / "iter_2.pth").write_bytes(damaged)
        assert latest_checkpoint(tmp_path).name == "iter_1.pth"
    (tmp_path / "last_checkpoint").write_text("")  # killed while it was written
    assert latest_checkpoint(tmp_path).name == "iter_1.pth"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    target = tmp_path / "iter_1.pth"
    target.write_bytes(b"whole")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        LocalBackend().put(b"new", target)
    assert target.read_bytes() == b"whole" and [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_checkpoint_loads_at_another_window_and_picture_size(tmp_path):
    from mmdet.apis import init_detector

    config = write_config(tmp_path, loop=ITERATIONS, workers=0, accumulated=1, ema=False)
    checkpoint = tmp_path / "weights.pth"
    settings = Config.fromfile(config)
    weights = init_detector(settings, device="cpu").state_dict()
    torch.save(
        dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=("a", "b")))), checkpoint
    )
    settings.model.backbone.update(window_size=3, global_attn_indices=(0,))
    model = init_detector(settings, str(checkpoint), device="cpu")
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert model.backbone(torch.randn(1, 3, 128, 96))[0].shape == (1, 16, 8, 6)
