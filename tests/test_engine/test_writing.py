"""Files are whole or not there, and a checkpoint is not put together in memory first."""

import io
import resource
import tracemalloc

import mmengine.runner.runner as mmengine_runner
import pytest
import torch
from mmengine.runner.checkpoint import save_checkpoint

from ropevit_mmdet.compat.writing import MB, atomic_file


def test_both_of_mmengines_names_are_taken_over():
    assert mmengine_runner.save_checkpoint is save_checkpoint
    assert save_checkpoint.__module__ == "ropevit_mmdet.compat.writing"


def test_a_checkpoint_goes_to_the_disk_without_a_copy_in_memory(tmp_path):
    checkpoint = {"state_dict": {"weight": torch.arange(8 * MB, dtype=torch.float32)}}  # 32 MB
    peaks = []
    for target in (tmp_path / "weights.pth", io.BytesIO()):
        tracemalloc.start()
        if isinstance(target, io.BytesIO):
            torch.save(checkpoint, target)  # what the figure looks like with a copy
        else:
            save_checkpoint(checkpoint, str(target))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 2 * MB and peaks[1] > 32 * MB
    loaded = torch.load(tmp_path / "weights.pth", weights_only=True)
    torch.testing.assert_close(loaded, checkpoint, rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def test_what_fails_on_the_way_leaves_the_file_before_it(tmp_path):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"before")
    with pytest.raises(KeyError), atomic_file(target) as file:
        file.write(b"half of")
        raise KeyError("whatever")
    assert target.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_full_disk_in_the_middle_of_large_tensors(share, tmp_path):
    """torch.save then raises an error of its own, of a position in the file."""
    target, checkpoint = tmp_path / "iter_1.pth", [torch.randn(10**6) for _ in range(3)]
    save_checkpoint(checkpoint, str(target))
    before, limits = target.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(len(before) * share), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*iter_1.pth was not written"):
            save_checkpoint(checkpoint, str(target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(OSError, match="weights.pth was not written; its disk has .* MB left"):
        save_checkpoint({}, str(tmp_path / "weights.pth"))
