"""`ropevit train`: small runs, and one line for what a user gets wrong."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ropevit_cli import train
from ropevit_mmdet.engine import work_dir_lock
from tests.commands import fails, ropevit
from tests.tiny_coco import write_tiny

RESNET = "type='ResNet', depth=18, base_channels=8, out_indices=(2, 3)"


def test_train_writes_a_checkpoint_of_the_detector(trained):
    config, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["meta"]["iter"] == 2
    assert tuple(saved["meta"]["dataset_meta"]["classes"]) == ("dark", "light")
    assert (checkpoint.parent / config.name).exists()


def test_resume_continues_and_options_apply(trained, tmp_path):
    config, checkpoint = trained
    options = ["--cfg-options", "train_cfg.max_iters=4"]
    ropevit("train", config, "--work-dir", tmp_path, "--resume", checkpoint, *options)
    saved = torch.load(tmp_path / "iter_4.pth", weights_only=True)
    first = torch.load(checkpoint, weights_only=True)
    assert saved["meta"]["iter"] == 4
    assert not (tmp_path / "iter_2.pth").exists()
    name = "bbox_head.retina_cls.weight"
    step = (saved["state_dict"][name] - first["state_dict"][name]).abs().max()
    assert 0 < step < 0.05  # not from another random start


def test_resume_finds_what_the_previous_run_saved_last(trained, tmp_path, monkeypatch):
    """It may save until it releases the lock of the work dir."""
    config, checkpoint = trained
    argv = ["train", config, "--work-dir", tmp_path, "--cfg-options"]
    ropevit(*argv, "train_cfg.max_iters=4", "default_hooks.checkpoint.interval=4")
    late = (tmp_path / "iter_4.pth").rename(tmp_path / "late")
    shutil.copy(checkpoint, tmp_path / "iter_2.pth")
    lock_work_dir = work_dir_lock.lock_work_dir

    def save_then_lock(*args):
        late.rename(tmp_path / "iter_4.pth")
        return lock_work_dir(*args)

    monkeypatch.setattr(work_dir_lock, "lock_work_dir", save_then_lock)
    ropevit(*argv, "train_cfg.max_iters=6", "--resume")
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "iter_4.pth" in logs and "resumed epoch: 0, iter: 4" in logs


def test_resume_without_checkpoint_keeps_load_from(trained, tmp_path):
    """A job that is restarted again and again always passes --resume."""
    config, checkpoint = trained
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    argv = [config, "--work-dir", tmp_path, "--resume", "--cfg-options", f"load_from={checkpoint}"]
    prepared = train.prepare(parser.parse_args([str(arg) for arg in argv]))
    assert (prepared.resume, prepared.load_from) == (False, str(checkpoint))


def test_resume_with_other_parameter_groups(trained, tmp_path, capsys):
    config, checkpoint = trained
    options = ["train_cfg.max_iters=4", "optim_wrapper.paramwise_cfg.bias_lr_mult=2"]
    argv = ["train", config, "--work-dir", tmp_path, "--resume", checkpoint]
    line = fails(capsys, *argv, "--cfg-options", *options)
    assert "optimizer has other parameter groups" in line


def test_locked_work_dir(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work_dir_lock, "TIMEOUT", 0)
    before = sorted(tmp_path.rglob("*"))
    with FileLock(tmp_path / work_dir_lock.LOCK):
        line = fails(capsys, "train", tiny, "--work-dir", tmp_path)
    assert f"another process is training into {tmp_path}: " in line
    assert set(tmp_path.rglob("*")) - {tmp_path / work_dir_lock.LOCK} == set(before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 1\nb = = 2\n", "line 2"),
        ("a = undefined_name\n", "undefined_name"),
        ("_base_ = './gone.py'\n", "gone.py"),
        ("a = 1\n", "defines no model"),
    ],
)
def test_broken_config(text, words, tiny, capsys):
    tiny.write_text(text)
    line = fails(capsys, "train", tiny)
    assert words in line and "tiny.py" in line
    assert not Path("work_dirs").exists()
    assert "config gone is neither a file nor the name" in fails(capsys, "train", "gone")


DATASET = "train_dataloader.dataset"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["model.backbone.type=RoPEVit"], "RoPEVit is not in the mmdet::model registry"),
        (["model.backbone.sort=1"], "unexpected keyword argument 'sort'"),
        (["work_dir.x=1"], "--cfg-options work_dir.x=1"),
        (["model"], "--cfg-options model: expected KEY=VALUE"),
        (["pipeline=[]"], "--cfg-options pipeline=[] has no effect"),
        (["optim_wrapper.dtype=bfloat16"], "optim_wrapper.dtype needs mixed precision"),
        (["load_from=gone.pth"], "gone.pth"),
        ([f"{DATASET}.data_root=mine/"], "file mine/annotations.json does not exist"),
        (
            [f"{DATASET}.data_root=data/coco/", f"{DATASET}.ann_file=instances_train2017.json"],
            "cocodataset.org/#download",
        ),
        (
            [f"{DATASET}.data_root=data/shapes/", f"{DATASET}.ann_file=instances_train.json"],
            "make-shapes",
        ),
    ],
)
def test_wrong_option_leaves_nothing_behind(options, words, tiny, capsys):
    tiny.write_text(tiny.read_text() + "work_dir = 'work_dirs/tiny'\n")
    assert words in fails(capsys, "train", tiny, "--cfg-options", *options)
    assert not Path("work_dirs").exists()


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("arch='rope_vit_x99'", "rope_vit_x99"),
        ("init_cfg=dict(type='Pretrained', checkpoint='truncated.pt')", "truncated.pt"),
    ],
)
def test_wrong_backbone_leaves_nothing_behind(backbone, words, tiny, capsys):
    Path("truncated.pt").write_bytes(b"PK\x03\x04 truncated")
    text = tiny.read_text()
    assert RESNET in text
    tiny.write_text(text.replace(RESNET, f"type='RoPEViT', {backbone}"))
    assert words in fails(capsys, "train", tiny)
    assert not Path("work_dirs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the error without a GPU")
def test_amp_needs_a_gpu(tiny, capsys):
    assert "--amp needs a GPU" in fails(capsys, "train", tiny, "--amp")


def test_auto_scale_lr_needs_its_settings(tiny, capsys):
    assert "base_batch_size" in fails(capsys, "train", tiny, "--auto-scale-lr")


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (("red", "blue"), "share no name"),
        (("dark", "blue"), "lack 'light'"),
        (("light", "dark"), "another order"),
    ],
)
def test_categories_of_other_classes(categories, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "train", write_tiny(tmp_path, categories=categories))
    assert words in line and repr(categories[0]) in line and "metainfo = dict(classes" in line
    assert not Path("work_dirs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(workers, tiny, capsys):
    Path("data/images/1.png").write_bytes(b"not an image")
    with pytest.raises(SystemExit) as stop:
        ropevit("train", tiny, "--cfg-options", f"train_dataloader.num_workers={workers}")
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "error: image " in line and "1.png cannot be read" in line
