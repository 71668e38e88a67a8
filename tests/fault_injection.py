"""Trainings that something happens to: killed, told to go, out of disk, with broken numbers.

`train_with` runs one in processes of its own, with a `Failure`; what is left can be resumed and
compared with a run that nothing happened to.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch
from mmengine.runner import Runner

from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from tests.processes import ROOT
from tests.tiny_coco import write_tiny

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.fault_injection"])
# Configs are printed into logs and checkpoints; making them pretty takes half of a short run.
UNFORMATTED = mock.patch("mmengine.config.config.FormatCode", lambda text, **_: (text, False))
TIMEOUT = 120  # seconds
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
HOOK = """
import math, multiprocessing, os, resource, signal, subprocess
from pathlib import Path
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook


@HOOKS.register_module(force=True)
class Failure(Hook):
    priority = 'VERY_HIGH'

    def __init__(self, kind, iteration, rank=0, stage='before_train_iter'):
        self.kind, self.iteration, self.rank = kind, iteration, rank
        setattr(self, stage, self.happen)

    def happen(self, runner, **kwargs):
        if runner.iter == self.iteration and get_rank() == self.rank:
            self.iteration = None  # once
            getattr(self, self.kind)(runner)

    def told_to_go(self, runner):
        os.kill(os.getpid(), signal.SIGTERM)

    def told_to_go_and_killed(self, runner):  # by the time of the next call
        self.told_to_go(runner)
        self.kind, self.iteration = 'killed', runner.iter

    def machine_goes(self, runner):
        for _ in range(2):  # a launcher passes on what its processes got too
            self.send_to_group('TERM')

    def machine_goes_by_usr1(self, runner):
        self.send_to_group('USR1')

    def send_to_group(self, name):
        group = f'-{os.getpgid(0)}'
        subprocess.run(['kill', f'-{name}', '--', group], start_new_session=True)

    def killed(self, runner):
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_while_writing(self, runner):  # a checkpoint is written, and not yet renamed
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    def worker_killed(self, runner):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    def disk_full(self, runner):
        size = os.path.getsize(os.path.join(runner.work_dir, 'iter_3.pth'))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    def weights_broken(self, runner):
        next(iter(runner.model.parameters())).data.fill_(math.nan)
"""
# An image's flip is drawn by numpy, its drop path by torch: both must continue where they were.
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
MORE = """
default_hooks.update(preemption=dict(type='PreemptionHook'))
"""
ADDED = """
custom_imports = dict(imports=['ropevit_mmdet', 'failures_hook'], allow_failed_imports=False)
custom_hooks = [*locals().get('custom_hooks', []), {hook!r}]
"""


ITERATIONS = dict(type="IterBasedTrainLoop", max_iters=9, val_interval=2)
EPOCHS = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)


def write_config(directory, *, loop, workers, accumulated, ema):
    write_tiny(directory)
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
    path = directory / "resumed.py"
    path.write_text(text)
    return path


def prepared(directory, **settings):
    """The config of a run that can be told to go."""
    config = write_config(directory, **settings)
    config.write_text(config.read_text() + MORE)
    return config


def train(config, work_dir, *, resume=False):
    """Train to the end in this process; the last checkpoint."""
    settings = load_config(config, work_dir=str(work_dir))
    settings.experiment_name = f"{work_dir}-{resume}".replace("/", "_")
    settings.resume = resume
    settings.load_from = str(latest_checkpoint(work_dir)) if resume else None
    with UNFORMATTED:
        Runner.from_cfg(settings).train()
    return torch.load(latest_checkpoint(work_dir), weights_only=True)


def assert_same(found, expected):
    assert found["meta"]["iter"] == expected["meta"]["iter"]
    for key in ("state_dict", "ema_state_dict", "optimizer"):
        assert (key in found) == (key in expected)
        torch.testing.assert_close(found.get(key), expected.get(key), rtol=0, atol=0)


def train_with(config: Path, work_dir: Path, failure: dict, *, command=(), arguments=()):
    """Run tools/train.py, in a process group of its own, on a config with a Failure in it.

    `command` starts it, as torchrun does; without one it is forked off a process that has imported
    everything, which saves most of the time.
    """
    argv = [ROOT / "tools" / "train.py", faulty(config, failure), "--work-dir", work_dir]
    argv = [*map(str, argv), *arguments]
    if not command:
        return forked(argv, config.parent, [{}])[0]
    process = subprocess.Popen(
        [sys.executable, *command, *argv, "--launcher", "pytorch"],
        cwd=ROOT.parent,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{config.parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun takes its processes along, by force after 30 s
        process.communicate()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, *said)


def train_two_with(config: Path, work_dir: Path, failure: dict):
    """As `train_with`, by two processes that nobody looks after; what has become of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{"RANK": rank, "LOCAL_RANK": rank, **group} for rank in "01"]
    argv = [ROOT / "tools" / "train.py", faulty(config, failure), "--work-dir", work_dir]
    return forked([*map(str, argv), "--launcher", "pytorch"], config.parent, environments)


def faulty(config: Path, failure: dict) -> Path:
    changed = config.with_name(f"unlucky_{config.name}")
    hook = dict(type="Failure", **failure)
    changed.write_text(config.read_text() + ADDED.format(hook=hook))
    config.with_name("failures_hook.py").write_text(HOOK)
    return changed


def forked(argv: list[str], directory: Path, environments: list[dict[str, str]]):
    """Run a program once per environment, side by side; `directory` is one more to import from."""
    # With as many threads as the runs that it is compared with to the bit, whatever a test has set.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads())):
        forkserver.ensure_running()  # starts it once
    started = []
    for number, environment in enumerate(environments):
        said = [directory / f"said_{number}_{stream}.txt" for stream in ("out", "err")]
        settings = (argv, str(directory), environment, *map(str, said))
        process = FORKSERVER.Process(target=_run_program, args=settings)
        process.start()
        started.append((process, said))
    deadline = time.monotonic() + TIMEOUT
    for process, _ in started:
        process.join(max(0.0, deadline - time.monotonic()))
    alive = [process for process, _ in started if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    texts = [[file.read_text() for file in said] for _, said in started]
    assert not alive, f"{len(alive)} did not end: {texts}"
    codes = [process.exitcode for process, _ in started]
    return [subprocess.CompletedProcess(argv, *done) for done in zip(codes, *zip(*texts))]


def _run_program(argv, directory, environment, out, err):
    os.setsid()
    for file, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(environment)
    os.chdir(ROOT.parent)
    sys.path[:0] = [directory]
    sys.argv = argv
    with UNFORMATTED:
        runpy.run_path(argv[0], run_name="__main__")
