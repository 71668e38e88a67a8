"""Trainings with an injected failure: killed, signalled, out of disk, with NaN weights.

`train_with` runs one in a dedicated process; its checkpoints can be resumed and compared with an
uninterrupted run. `python -m tests.fault_injection CONFIG WORK_DIR` trains as `ropevit train` does.
"""

import argparse
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import torch
from mmdet.registry import RUNNERS
from mmengine.config import config
from yapf.yapflib import yapf_api

from ropevit_mmdet.engine import latest_checkpoint
from ropevit_mmdet.engine.config import load_config, use_amp
from ropevit_mmdet.engine.launcher import launched
from ropevit_mmdet.errors import one_line_errors
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.fault_injection"])
# mmengine formats configs for logs and checkpoints, which takes half of a short run.
FORMATTER = config if hasattr(config, "FormatCode") else yapf_api  # mmengine 0.10.7, or the fork
UNFORMATTED = mock.patch.object(FORMATTER, "FormatCode", lambda text, **_: (text, False))
TIMEOUT = 120  # seconds
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TRAIN = ("-m", "tests.fault_injection")
HOOK = """
import math, multiprocessing, os, resource, signal, subprocess, time
from pathlib import Path
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook


@HOOKS.register_module(force=True)
class Failure(Hook):
    priority = 'VERY_HIGH'

    def __init__(self, event, iteration, rank=0, stage='before_train_iter'):
        self.event, self.iteration, self.rank = event, iteration, rank
        setattr(self, stage, self.happen)

    def happen(self, runner, **kwargs):
        if runner.iter == self.iteration and get_rank() == self.rank:
            self.iteration = None  # once
            getattr(self, self.event)(runner)

    def sigterm(self, runner):
        os.kill(os.getpid(), signal.SIGTERM)

    def sigterm_then_sigkill(self, runner):  # SIGKILL at the next call
        self.sigterm(runner)
        self.event, self.iteration = 'sigkill', runner.iter

    def sigterm_to_group(self, runner, name='TERM'):
        for _ in range(2):  # a launcher repeats the signal that its processes received
            group = f'-{os.getpgid(0)}'
            subprocess.run(['kill', f'-{name}', '--', group], start_new_session=True)

    def sigusr1_to_group(self, runner):
        self.sigterm_to_group(runner, 'USR1')

    def sigkill(self, runner):
        os.kill(os.getpid(), signal.SIGKILL)

    def sigkill_while_writing(self, runner):  # before the next checkpoint is renamed
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    def worker_killed(self, runner):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(5)  # ends with the signal of its death

    def disk_full(self, runner):
        size = os.path.getsize(os.path.join(runner.work_dir, 'iter_3.pth'))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    def weights_nan(self, runner):
        next(iter(runner.model.parameters())).data.fill_(math.nan)
"""
# numpy samples the flips, torch the drop paths: both must continue where they were.
CONFIG = """
_base_ = './tiny.py'
model = dict(
    backbone=dict(_delete_=True, type='RoPEViT', pretrain_img_size=64, drop_path_rate=0.5,
                  window_size=2, global_attn_indices=(1,),
                  arch=dict(patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)),
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
                                     interval={interval}, max_keep_ckpts=2, save_best=None),
                     preemption=dict(type='PreemptionHook'))
custom_hooks = [dict(type='EMAHook', momentum=0.1)] if {ema} else []
"""
ADDED = """
custom_imports = dict(imports=['ropevit_mmdet', 'failure_hook'], allow_failed_imports=False)
custom_hooks = [*locals().get('custom_hooks', []), {hook!r}]
"""
ITERATIONS = dict(type="IterBasedTrainLoop", max_iters=9, val_interval=2)
EPOCHS = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)


def write_config(directory, *, loop=ITERATIONS, workers=0, accumulated=1, ema=False, more=""):
    write_tiny(directory)
    by_epoch = loop is EPOCHS
    settings = dict(loop=loop, workers=workers, accumulated=accumulated, ema=ema)
    settings |= dict(by_epoch=by_epoch, interval=1 if by_epoch else 3)
    sampler = "DefaultSampler" if by_epoch else "InfiniteSampler"
    path = directory / "resumed.py"
    path.write_text(CONFIG.format(**settings, sampler=sampler) + more)
    return path


def train(config, work_dir, *, resume=False, launcher="none", amp=False):
    """Trains to the end in this process; returns the last checkpoint."""
    settings = load_config(config, work_dir=str(work_dir), launcher=launcher)
    settings.experiment_name = f"{work_dir}-{resume}".replace("/", "_")
    if resume:
        settings.resume, settings.load_from = True, str(latest_checkpoint(work_dir))
    if amp:
        use_amp(settings)
    with UNFORMATTED, launched(settings):
        runner = RUNNERS.get(settings.get("runner_type", "Runner")).from_cfg(settings)
        runner.train()
    for loader in (runner.train_dataloader, runner.val_dataloader):
        if iterator := getattr(loader, "_iterator", None):
            iterator._shutdown_workers()  # garbage collection would wait 5 s for each
    return torch.load(latest_checkpoint(work_dir), weights_only=True)


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("work_dir")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--launcher", default="none")
    with one_line_errors():
        train(**vars(parser.parse_args(argv)))


def assert_same(actual, expected):
    assert actual["meta"]["iter"] == expected["meta"]["iter"]
    for key in ("state_dict", "ema_state_dict", "optimizer"):
        assert (key in actual) == (key in expected)
        torch.testing.assert_close(actual.get(key), expected.get(key), rtol=0, atol=0)


def train_with(config: Path, work_dir: Path, failure: dict, *arguments: str, command=()):
    """Trains on a config with a Failure in it, in a dedicated process group.

    `command`, such as torchrun, starts it; without one it is forked from a process that has
    imported everything, which saves most of the time.
    """
    argv = [str(with_failure(config, failure)), str(work_dir), *arguments]
    if command:
        return run_python(*command, *TRAIN, *argv, "--launcher", "pytorch", path=config.parent)
    return forked(argv, config.parent, [{}])[0]


def train_two_with(config: Path, work_dir: Path, failure: dict):
    """As `train_with`, in two processes without a launcher that supervises them."""
    return train_group(with_failure(config, failure), work_dir)


def train_group(config: Path, work_dir: Path, *arguments: str, size: int = 2):
    """Trains in one or two processes of a group; returns them when they have ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{"RANK": f"{i}", "LOCAL_RANK": f"{i}", **group} for i in range(size)]
    argv = [str(config), str(work_dir), "--launcher", "pytorch", *arguments]
    return forked(argv, config.parent, environments)


def with_failure(config: Path, failure: dict) -> Path:
    changed = config.with_name(f"failing_{config.name}")
    hook = dict(type="Failure", **failure)
    changed.write_text(config.read_text() + ADDED.format(hook=hook))
    config.with_name("failure_hook.py").write_text(HOOK)
    return changed


def forked(argv: list[str], directory: Path, environments: list[dict[str, str]]):
    """Runs `main` once per environment, in parallel; `directory` is importable."""
    # With as many threads as the runs that it is compared with to the bit.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads())):
        forkserver.ensure_running()  # starts it once
    started = []
    for number, environment in enumerate(environments):
        outputs = [directory / f"{stream}_{number}.txt" for stream in ("stdout", "stderr")]
        process = FORKSERVER.Process(
            target=_run_main, args=(argv, str(directory), environment, *map(str, outputs))
        )
        process.start()
        started.append((process, outputs))
    deadline = time.monotonic() + TIMEOUT
    for process, _ in started:
        process.join(max(0.0, deadline - time.monotonic()))
        alive = process.is_alive()
        process.kill()
        assert not alive, f"the run did not end within {TIMEOUT} s"
    texts = [[file.read_text() for file in outputs] for _, outputs in started]
    codes = [process.exitcode for process, _ in started]
    return [CompletedProcess(argv, *done) for done in zip(codes, *zip(*texts))]


def _run_main(argv, directory, environment, stdout, stderr):
    os.setsid()
    for file, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    os.chdir(ROOT.parent)
    sys.path[:0] = [directory]
    main(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
