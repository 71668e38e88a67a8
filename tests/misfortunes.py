"""For tests of runs: what happens to a training in a process, or several, of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
HOOK = """
import math, multiprocessing, os, resource, signal, subprocess
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook


@HOOKS.register_module(force=True)
class Misfortune(Hook):
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

    def machine_goes(self, runner):
        for _ in range(2):  # a launcher passes on what its processes got too
            group = f'-{os.getpgid(0)}'
            subprocess.run(['kill', '-TERM', '--', group], start_new_session=True)

    def killed(self, runner):
        os.kill(os.getpid(), signal.SIGKILL)

    def worker_killed(self, runner):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    def disk_full(self, runner):
        size = os.path.getsize(os.path.join(runner.work_dir, 'iter_3.pth'))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    def weights_broken(self, runner):
        next(iter(runner.model.parameters())).data.fill_(math.nan)
"""
ADDED = """
custom_imports = dict(imports=['ropevit_mmdet', 'misfortunes_hook'], allow_failed_imports=False)
custom_hooks = [*locals().get('custom_hooks', []), {hook!r}]
"""


def train_with(config: Path, work_dir: Path, misfortune: dict, *, command=(), arguments=()):
    """Run tools/train.py, in a process group of its own, on a config with a Misfortune in it."""
    changed = config.with_name(f"unlucky_{config.name}")
    hook = dict(type="Misfortune", **misfortune)
    changed.write_text(config.read_text() + ADDED.format(hook=hook))
    config.with_name("misfortunes_hook.py").write_text(HOOK)
    argv = [sys.executable, *command, ROOT / "tools" / "train.py", changed]
    launcher = ("--launcher", "pytorch") if command else ()
    process = subprocess.Popen(
        [*map(str, argv), "--work-dir", str(work_dir), *launcher, *arguments],
        cwd=ROOT.parent,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{config.parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun takes its processes along, by force after 30 s
        process.communicate()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, *said)
