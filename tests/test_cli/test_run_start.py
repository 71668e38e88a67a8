"""The start of a run: each file is read once, and the config is formatted once."""

import pytest
import torch
from mmengine.hooks import IterTimerHook

from ropevit_mmdet.compat import checkpoint as files
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.engine.run_start import run_start
from tests.commands import ropevit


@pytest.fixture
def reads(monkeypatch):
    """The names of files that were read, each time."""
    names, read = [], files._read

    def counted(path, map_location):
        names.append(path.name)
        return read(path, map_location)

    monkeypatch.setattr(files, "_read", counted)
    return names


@pytest.mark.parametrize("command", ["load_from", "resume", "test"])
def test_a_run_reads_its_checkpoint_once(command, trained, reads, tmp_path, monkeypatch):
    original, checkpoint = trained
    config = tmp_path / "config.py"
    config.write_text(original.read_text() + "\ncustom_hooks = [dict(type='RoPEViTChecks')]\n")
    kept, before_iter = [], IterTimerHook._before_iter

    def recorded(*args, **kwargs):
        kept.append(files._kept)
        before_iter(*args, **kwargs)

    monkeypatch.setattr(IterTimerHook, "_before_iter", recorded)
    ends = "train_cfg.max_iters=4"
    argv = {
        "load_from": ["train", config, "--cfg-options", f"load_from={checkpoint}"],
        "resume": ["train", config, "--resume", checkpoint, "--cfg-options", ends],
        "test": ["test", config, checkpoint],
    }[command]
    assert ropevit(*argv[:2], "--work-dir", tmp_path, *argv[2:]) in (0, None)
    assert reads == [checkpoint.name]
    assert set(kept) == {None} and files._kept is None  # released while the run trains


def test_a_kept_file_is_read_again_after_a_change(reads, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "meta": {"epoch": [1]}}, path)
    with run_start():
        first = files.read_checkpoint_file(path)
        first["state_dict"].clear(), first["meta"]["epoch"].append(2)
        second = files.read_checkpoint_file(path)
        assert second["meta"] == {"epoch": [1]} and second["state_dict"]["a"].tolist() == [0, 0]
        torch.save({"state_dict": {"a": torch.ones(3)}}, path)
        assert files.read_checkpoint_file(path)["state_dict"]["a"].tolist() == [1, 1, 1]
        assert len(reads) == 2
    files.read_checkpoint_file(path)
    assert len(reads) == 3 and files._kept is None


def test_a_model_without_random_weights_samples_none():
    config = load_config("shapes_maskrcnn")
    state = torch.get_rng_state()
    model = build_detector(config, random=False)
    assert torch.equal(torch.get_rng_state(), state)
    expected = build_detector(config).state_dict()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }
    weight = "backbone.blocks.0.attn.qkv.weight"
    assert not model.state_dict()[weight].any() and expected[weight].std() > 0.01
    assert model.data_preprocessor.mean.flatten()[0] > 100  # what is not random stays
    assert all(parameter.requires_grad for parameter in model.neck.parameters())
