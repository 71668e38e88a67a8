"""What was freed goes back to the system when a checkpoint has been written."""

import os
import platform

import pytest
import torch
from mmengine.runner import Runner

from ropevit_mmdet.analysis.soak import Watch
from ropevit_mmdet.run import memory, resume
from ropevit_mmdet.run.config import load_config
from tests.tiny_coco import write_tiny

MB = 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_holes_in_the_heap_are_given_back():
    watch = Watch()
    blocks = [bytes([1]) * 64_000 for _ in range(1000)]  # under the size that is mapped by itself
    kept = blocks[::50]
    watch.sample(1)
    del blocks
    watch.sample(2)
    memory.give_back_memory()
    watch.sample(3)
    assert len(kept) == 20 and watch.memory[1] - watch.memory[2] > 40 * MB


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.give_back_memory()


def test_every_checkpoint_does_so(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(resume, "give_back_memory", lambda: called.append(os.listdir(tmp_path)))
    hook = dict(type="ResumableCheckpointHook", by_epoch=False, interval=1)
    settings = {"default_hooks.checkpoint": hook, "val_dataloader": None, "val_cfg": None,
                "val_evaluator": None}  # fmt: skip
    torch.manual_seed(0)
    Runner.from_cfg(load_config(write_tiny(tmp_path), settings, work_dir=str(tmp_path))).train()
    assert ["iter_1.pth" in files for files in called] == [True, True]
    assert "iter_2.pth" in called[1] and "iter_2.pth" not in called[0]
