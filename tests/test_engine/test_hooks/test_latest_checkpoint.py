"""The checkpoint that a run resumes from: links to nothing and corrupted files are skipped."""

import os

import torch

from ropevit_mmdet.engine import latest_checkpoint


def test_links_to_nothing_and_corrupted_files_are_skipped(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        torch.save({"iter": step}, tmp_path / f"iter_{step}.pth")
        os.utime(tmp_path / f"iter_{step}.pth", (step, step))
    assert latest_checkpoint(tmp_path).name == "iter_2.pth"
    (tmp_path / "iter_2.pth").write_bytes((tmp_path / "iter_2.pth").read_bytes()[:-100])
    (tmp_path / "iter_3.pth").symlink_to(tmp_path / "gone.pth")
    assert latest_checkpoint(tmp_path).name == "iter_1.pth"


def test_archives_without_checksums_count_as_intact(tmp_path, monkeypatch):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"iter": 1}, tmp_path / "iter_1.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert latest_checkpoint(tmp_path) is not None
