"""`ropevit train`: small runs, and one line for what a user gets wrong."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ropevit_cli import train
from ropevit_mmdet.engine import work_dir_lock
from tests.commands import fails, ropevit

RESNET = "type='ResNet', depth=18, base_channels=8, out_indices=(2, 3)"


def test_train_writes_a_checkpoint_of_the_detector(trained):
    config, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["meta"]["iter"] == 2
    assert tuple(saved["meta"]["dataset_meta"]["classes"]) == ("dark", "light")
    assert (checkpoint.parent / config.name).exists()


def test_resume_continues_and_options_apply(trained, tmp_path):
    config, checkpoint = trained
    pretraining = dict(type="Pretrained", checkpoint="gone.pth")  # nothing of it is used
    pretraining = [f"model.backbone.init_cfg.{k}={v}" for k, v in pretraining.items()]
    options = ["--cfg-options", "train_cfg.max_iters=4", *pretraining]
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


def prepared(*argv):
    """The config of `ropevit train *argv`."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.prepare(parser.parse_args([str(arg) for arg in argv]))[0]


def test_resume_without_checkpoint_keeps_load_from(trained, tmp_path):
    """A job that is restarted again and again always passes --resume."""
    config, checkpoint = trained
    argv = ["--work-dir", tmp_path, "--resume", "--cfg-options", f"load_from={checkpoint}"]
    settings = prepared(config, *argv)
    assert (settings.resume, settings.load_from) == (False, str(checkpoint))


def test_resume_without_a_seed_takes_that_of_the_checkpoint(trained):
    """mmengine would sample another one, and with it another order of the data."""
    config, checkpoint = trained
    argv = ["--resume", checkpoint, "--cfg-options", "randomness.seed=None"]
    assert prepared(config, *argv).randomness.seed == 0


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
        (["load_from=gone.pth"], "gone.pth"),
        ([f"{DATASET}.data_root=mine/"], "file mine/annotations.json does not exist"),
    ],
)
def test_wrong_option_leaves_nothing_behind(options, words, tiny, capsys):
    tiny.write_text(tiny.read_text() + "work_dir = 'work_dirs/tiny'\n")
    assert words in fails(capsys, "train", tiny, "--cfg-options", *options)
    assert not Path("work_dirs").exists()


def test_wrong_backbone_leaves_nothing_behind(tiny, capsys):
    Path("truncated.pt").write_bytes(b"PK\x03\x04 truncated")
    backbone = "type='RoPEViT', init_cfg=dict(type='Pretrained', checkpoint='truncated.pt')"
    tiny.write_text(tiny.read_text().replace(RESNET, backbone))
    assert "truncated.pt" in fails(capsys, "train", tiny)
    assert not Path("work_dirs").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("optim_wrapper.dtype=bfloat16", "unexpected keyword argument 'dtype'"),
        ("train_dataloader.sampler.type=Gone", "Gone is not in the mmdet::data sampler registry"),
        ("default_hooks.checkpoit.interval=1", 'must contain the key "type"'),
    ],
)
def test_what_mmengine_cannot_build_is_one_line(option, words, tiny, capsys):
    assert words in fails(capsys, "train", tiny, "--cfg-options", option)


def test_unreadable_image_is_named(tiny, capsys):
    Path("data/images/1.png").write_bytes(b"not an image")
    with pytest.raises(SystemExit) as stop:
        ropevit("train", tiny, "--cfg-options", "train_dataloader.num_workers=1")
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "error: image " in line and "1.png cannot be read" in line


@pytest.mark.parametrize("metric", ["CocoMetric", "FastCocoMetric"])
def test_a_validation_without_detections(metric, tiny):
    """What waits for a figure gets AP 0; 'auto' is the overall AP, not that of a class."""
    more = f"""
model['test_cfg'].update(score_thr=2.0)
train_cfg.update(val_interval=1)
val_evaluator.update(type={metric!r}, classwise=True)
param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP', rule='greater')]
default_hooks['checkpoint'].update(type='ResumableCheckpointHook', save_best='auto')
custom_hooks = [dict(type='RoPEViTChecks'),
                dict(type='EarlyStoppingHook', monitor='coco/dark_precision', strict=True)]
train_dataloader.update(batch_sampler=dict(type='AspectRatioBatchSampler'))
auto_scale_lr = dict(base_batch_size=16)
"""
    tiny.write_text(tiny.read_text() + more)
    ropevit("train", tiny, "--work-dir", "run")
    assert sorted(path.name for path in Path("run").glob("*.pth")) == [
        "best_coco_bbox_mAP_iter_1.pth",
        "iter_2.pth",
    ]
    (log,) = Path("run").glob("*/*.log")
    assert "the effective batch size is 2 (1 processes x 2 images" in log.read_text()


def test_class_names_of_a_checkpoint(trained, tmp_path, capsys):
    config, checkpoint = trained
    swapped = tmp_path / "swapped.json"
    document = json.loads((config.parent / "data" / "annotations.json").read_text())
    document["categories"].reverse()
    swapped.write_text(json.dumps(document))
    options = [
        f"{split}_dataloader.dataset.ann_file={swapped}" for split in ("train", "val", "test")
    ]
    options += [f"{split}_evaluator.ann_file={swapped}" for split in ("val", "test")]
    for argv in (["test", config, checkpoint], ["train", config, "--resume", checkpoint]):
        argv += ["--work-dir", tmp_path / "run", "--cfg-options", *options]
        assert "--fix OUT.json` orders the file; for a new" in fails(capsys, *argv)
        classes = [f"{split}_dataloader.dataset.metainfo.classes=(light,dark)"
                   for split in ("train", "val", "test")]  # fmt: skip
        assert f"{checkpoint} has the dataset's classes in another order" in fails(
            capsys, *argv, *classes
        )
    assert not (tmp_path / "run").exists()


def test_log_and_its_options(tiny, monkeypatch):
    """`--cfg-options` sets what `--log` adds; `--tensorboard` is short for one of them."""
    monkeypatch.setattr("ropevit_mmdet.engine.config.find_spec", lambda name: name)
    argv = [tiny, "--tensorboard", "--log", "mlflow", "--cfg-options"]
    config = prepared(*argv, "visualizer.vis_backends.2.tracking_uri=http://127.0.0.1:5000")
    backends = [one["type"] for one in config.visualizer.vis_backends]
    assert backends == ["LocalVisBackend", "TensorboardVisBackend", "MLflowVisBackend"]
    assert config.visualizer.vis_backends[2].tracking_uri == "http://127.0.0.1:5000"
