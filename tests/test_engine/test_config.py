"""Configs by path or name, and what the options of the commands change in them."""

import json
from functools import partial
from pathlib import Path

import pytest
from mmdet.evaluation import CocoMetric
from mmdet.registry import VISBACKENDS
from mmengine.config import Config

from ropevit_mmdet.engine.config import (
    is_config,
    load_config,
    use_amp,
    use_auto_scale_lr,
    use_early_stop,
    use_log,
    use_show,
    use_tta,
)
from ropevit_mmdet.errors import UserError
from tests.commands import ropevit
from tests.tiny_coco import write_tiny

ROOT = Path(__file__).parents[2]


def test_packaged_config_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_config("ropevit_maskrcnn")
    by_path = load_config(ROOT / "configs" / "ropevit_maskrcnn.py")
    assert by_name.work_dir == by_path.work_dir == "work_dirs/ropevit_maskrcnn"
    assert by_name.model == by_path.model
    Path("ropevit_maskrcnn").write_text("a file of that name is preferred")
    with pytest.raises(UserError, match="config file ropevit_maskrcnn cannot be read"):
        load_config("ropevit_maskrcnn")
    Path("shapes_retinanet").mkdir()  # such as the work dir of its run
    assert is_config("shapes_retinanet") and not is_config("ropevit_maskrcnn")


def test_options_are_parsed_as_mmdet_does():
    options = ["model.test_cfg.a=1", "model.test_cfg.b=[(1,2.5),(x,None)]", "model.test_cfg.c=a=b"]
    options += ["train_cfg.val_interval=7", "model.test_cfg.d=True", "model.test_cfg.e=my data/a.b"]
    options += ["model.test_cfg.f=('traffic light' , [dog, 1],)"]  # with spaces, unlike mmdet
    config = load_config("shapes_retinanet", options)
    given = {key: config.model.test_cfg[key] for key in "abcdef"}
    expected = {"a": 1, "b": [(1, 2.5), ("x", None)], "c": "a=b", "d": True, "e": "my data/a.b"}
    assert given == expected | {"f": ("traffic light", ["dog", 1])}
    assert config.train_cfg.val_interval == 7
    checkpointing = load_config("shapes_retinanet", ["activation_checkpointing=[backbone]"])
    assert checkpointing.activation_checkpointing == ["backbone"]
    assert (
        load_config("shapes_retinanet", {"train_cfg.val_interval": 7}).train_cfg.val_interval == 7
    )


def test_tta_removes_the_mask_head():
    pack = {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape")}
    config = Config(
        {
            "model": {"roi_head": {"mask_head": {"type": "M"}, "mask_roi_extractor": {}}},
            "test_evaluator": [{"type": "CocoMetric", "metric": ["bbox", "segm"]}],
            "test_dataloader": {"dataset": {"pipeline": [{"type": "Load"}, pack]}},
        }
    )
    assert use_tta(config)
    assert config.model.type == "DetTTAModel"
    assert config.model.module.roi_head.mask_head is None
    assert config.test_evaluator[0].metric == "bbox"
    flips, packs = config.test_dataloader.dataset.pipeline[-1].transforms
    assert [flip.prob for flip in flips] == [1.0, 0.0]
    assert packs[0].meta_keys[-2:] == ("flip", "flip_direction")
    assert not use_tta(Config({**config.to_dict(), "model": {"bbox_head": {}}}))


@pytest.mark.parametrize(
    "model",
    [{"panoptic_head": {}}, {"mask_head": {}}, {"bbox_head": {"type": "RTMDetInsSepBNHead"}}],
    ids=lambda model: next(iter(model)),
)
def test_tta_of_masks_without_rois_is_refused(model):
    with pytest.raises(UserError, match="^--tta: mmdet merges boxes, not masks$"):
        use_tta(Config({"model": model}))


show = partial(use_show, show=False, show_dir="drawn", wait_time=1)
log = partial(use_log, names=["wandb"])
early_stop = partial(use_early_stop, patience=5)
COCO = dict(type="CocoMetric")
SEVERAL = dict(type="MultiDatasetsEvaluator", metrics=[COCO, COCO], dataset_prefixes=["a", "b"])
ACCUMULATED = dict(
    auto_scale_lr=dict(base_batch_size=4, passes=1), optim_wrapper=dict(accumulative_counts=4)
)


@pytest.mark.parametrize(
    ("function", "config", "message"),
    [
        (show, {}, "need a hook in the config"),
        (use_amp, {"optim_wrapper": {}}, "--amp needs a GPU"),
        (use_auto_scale_lr, {}, r"needs auto_scale_lr = dict\(base_batch_size"),
        (use_auto_scale_lr, ACCUMULATED, "accumulative_counts=4 is not the 1"),
        (log, {}, "--log wandb needs a package: pip install wandb"),
        (early_stop, {}, "--early-stop needs a val_evaluator of boxes"),
        (early_stop, dict(val_evaluator=dict(type="CocoMetric", metric="segm")), "of boxes"),
        (early_stop, dict(val_evaluator=dict(type="VOCMetric")), "of boxes"),
        (early_stop, dict(val_evaluator=SEVERAL), "of one dataset"),
        (early_stop, dict(val_evaluator=COCO, val_cfg=dict(type="TeacherStudentValLoop")), "model"),
    ],
)
def test_options_that_do_not_fit_the_config(function, config, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ropevit_mmdet.engine.config.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        function(Config(config))


@pytest.mark.parametrize("uri", [None, "http://127.0.0.1:5000"])
def test_each_backend_is_added_once(uri, monkeypatch):
    monkeypatch.setattr("ropevit_mmdet.engine.config.find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = Config({})
    for _ in range(2):
        use_log(config, ["tensorboard", "wandb", "mlflow"])
    backends = config.visualizer.vis_backends
    assert [one["type"].removesuffix("VisBackend") for one in backends] == [
        *("Local", "Tensorboard", "Wandb", "MLflow")
    ]
    assert backends[-1].tracking_uri == (uri or "sqlite:///mlflow.db")
    assert all(VISBACKENDS.get(one["type"]) for one in backends)


@pytest.mark.parametrize(
    ("evaluator", "monitor"),
    [
        (dict(type="CocoMetric"), "coco/bbox_mAP"),
        (dict(type="mmdet.FastCocoMetric", metric=["segm", "bbox"]), "coco/bbox_mAP"),
        ([dict(type="VOCMetric"), dict(type=CocoMetric, prefix="mine")], "mine/bbox_mAP"),
    ],
)
def test_early_stop_monitors_the_overall_box_ap(evaluator, monitor):
    old = dict(type="EarlyStoppingHook", monitor="loss")
    hooks = dict(checkpoint=dict(type="ResumableCheckpointHook"), stop=old)
    config = Config(
        dict(val_evaluator=evaluator, default_hooks=hooks, custom_hooks=[old, dict(type="EMAHook")])
    )
    use_early_stop(config, 3)
    ema, stop = config.custom_hooks
    assert ema.type == "EMAHook" and config.default_hooks.keys() == {"checkpoint"}
    assert (stop.monitor, stop.patience, stop.min_delta) == (monitor, 3, 0.001)
    assert config.default_hooks.checkpoint.save_best == monitor
    use_early_stop(config, 4)
    assert [hook.get("patience") for hook in config.custom_hooks] == [None, 4]


def test_tensorboard_events_and_early_stop(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = write_tiny(tmp_path)
    hook = ["default_hooks.logger.type=LoggerHook", "default_hooks.logger.interval=1"]
    argv = ["train", config, "--work-dir", tmp_path / "run", "--log", "tensorboard"]
    argv += ["--early-stop", 1]  # after two validations of AP 0
    ropevit(*argv, "--cfg-options", *hook, "train_cfg.max_iters=9", "train_cfg.val_interval=1")
    assert [file.stem for file in tmp_path.glob("run/best_*.pth")] == ["best_coco_bbox_mAP_iter_1"]
    (file,) = tmp_path.glob("run/*/vis_data/events.out.tfevents.*")
    written = events.EventAccumulator(str(file)).Reload()
    lines = file.with_name("scalars.json").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    points = written.Scalars("loss")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx(losses)
    assert "coco/bbox_mAP" in written.Tags()["scalars"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = dict(samples_per_gpu=2)", "is for MMDetection 2, by its data: "),
        ("lr_config = dict(policy='step')", "is for MMDetection 2, by its lr_config"),
        ("runner = dict(max_epochs=9)\nevaluation = dict()", "2, by its evaluation, runner"),
        (
            "custom_imports = dict(imports=['gone'])",
            "No module named 'gone': add its dir",
        ),
        ("custom_imports = dict(imports=['needs_more'])", "needs_more: No module named 'zzz'"),
        ("custom_imports = dict(imports=['fails'])", "fails: cannot import name"),
    ],
)
def test_configs_that_cannot_be_used(text, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_more.py").write_text("import zzz.inner")
    (tmp_path / "fails.py").write_text("from json import gone")
    (tmp_path / "mine.py").write_text(f"{text}\nmodel = dict()")
    with pytest.raises(UserError, match=f"mine.py .*{message}"):
        load_config(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("resum=True", "nothing reads 'resum'; did you mean 'resume'"),
        ("optim_wraper.optimizer.lr=1", "did you mean 'optim_wrapper'"),
        ("max_iters=7", "has already used this variable"),
        ("train_pipeline.0.type=X", "has already used this variable"),
    ],
)
def test_options_without_effect(option, message):
    with pytest.raises(UserError, match=rf"--cfg-options {option.split('=')[0]}=.* {message}"):
        load_config("shapes_retinanet", [option])
