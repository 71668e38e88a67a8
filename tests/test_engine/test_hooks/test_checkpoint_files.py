"""The checkpoint that a run resumes from, and writing without a copy in memory."""

import os
import tracemalloc

import pytest
import torch
from mmengine.runner import checkpoint as checkpoint_module

from ropevit_mmdet._output import MB
from ropevit_mmdet.engine import latest_checkpoint
from ropevit_mmdet.engine.hooks._checkpoint_files import atomic_checkpoints


@pytest.fixture
def saved(tmp_path):
    """A work dir of two checkpoints that has moved since, without a pointer to the last one."""
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        torch.save(dict(weights=torch.rand(1000)), tmp_path / f"iter_{step}.pth")
        os.utime(tmp_path / f"iter_{step}.pth", (step, step))
    (tmp_path / "last_checkpoint").write_text(f"/moved/since/{tmp_path.name}/iter_2.pth")
    assert latest_checkpoint(tmp_path).name == "iter_2.pth"
    return tmp_path


def test_corrupted_checkpoints_are_skipped(saved):
    intact = (saved / "iter_2.pth").read_bytes()
    (saved / "best_iter_2.pth").write_bytes(intact)  # without an optimizer
    (saved / "iter_3.pth").symlink_to(saved / "gone.pth")
    for bad in (intact[:-100], intact[: len(intact) // 2], b"", intact[:900] + b"!" + intact[901:]):
        (saved / "iter_2.pth").write_bytes(bad)
        assert latest_checkpoint(saved).name == "iter_1.pth"


@pytest.mark.parametrize("pointer", [b"", b"\0" * 9, b"\xff"])
def test_a_corrupted_pointer_is_ignored(saved, pointer):
    (saved / "last_checkpoint").write_bytes(pointer)
    assert latest_checkpoint(saved).name == "iter_2.pth"


def test_archives_without_checksums_count_as_intact(tmp_path, monkeypatch):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"iter": 1}, tmp_path / "iter_1.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert latest_checkpoint(tmp_path) is not None


def test_a_checkpoint_is_written_without_a_copy_in_memory(tmp_path):
    checkpoint = {"state_dict": {"weight": torch.arange(8 * MB, dtype=torch.float32)}}  # 32 MB
    tracemalloc.start()
    with atomic_checkpoints():
        checkpoint_module.save_checkpoint(checkpoint, str(tmp_path / "weights.pth"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MB
    loaded = torch.load(tmp_path / "weights.pth", weights_only=True)
    torch.testing.assert_close(loaded, checkpoint, rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]
