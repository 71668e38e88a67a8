"""The checks at the start of a run: strides, normalization, classes and batch size."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ropevit_mmdet.engine.config import build_detector
from ropevit_mmdet.engine.hooks.rope_vit_checks import (
    RoPEViTChecks,
    batch_warning,
    check_config_classes,
    check_feature_maps,
    check_masks,
    check_normalization,
    check_num_classes,
    check_strides,
)
from ropevit_mmdet.errors import UserError
from tests.oracle import RGB_STATS, SMALL, birder_net, write_checkpoint
from tests.test_configs import CONFIGS, load
from tests.test_models.test_dense_heads.test_eomt_head import build as small_eomt
from tests.tiny_coco import write_tiny


@pytest.mark.parametrize(
    ("name", "key", "strides", "message"),
    [
        (
            "maskrcnn", "rpn_head.anchor_generator.strides", [4, 8, 16, 32, 64],
            r"rpn_head\.anchor_generator\.strides is \[4, 8, 16, 32, 64\].*\[3.5, 7, 14, 28, 56\]",
        ),
        (
            "maskrcnn", "roi_head.bbox_roi_extractor.featmap_strides", [4, 8, 16, 32],
            r"bbox_roi_extractor\.featmap_strides.*\[4, 8, 16, 32\].*3.5",
        ),
        (
            "maskrcnn", "neck.in_stride", 16,
            r"in_stride is 16, but the backbone's patches have 14 pixels; set neck\.in_stride=14",
        ),
        (
            "fcos", "neck.out_strides", (8, 16, 32, 64, 128),
            r"set bbox_head\.strides=\[8.*, and adapt its regress_ranges",
        ),
    ],
)  # fmt: skip
def test_strides_of_anchors_points_and_roi_extractors(name, key, strides, message):
    config = load(CONFIGS / f"ropevit_{name}.py")
    config.merge_from_dict({f"model.{key}": strides})
    with pytest.raises(UserError, match=message):
        check_strides(MODELS.build(config.model))


WRONG = ((2, 5), dict(in_channels=[192] * 4, fuse="sum"), r"\[192, 192\], fuse='concat' of the")


@pytest.mark.parametrize(
    ("out_indices", "neck", "advice", "kind"),
    [
        *((*WRONG, kind) for kind in ("plain", "frozen", "several necks", "student")),
        ((2, 5), dict(in_channels=192), r"is \[192\].*\(2, 5\).*fuse='concat' of the", "plain"),
        (5, dict(in_channels=[192, 192], fuse="concat"), r"\(5,\) .* in_channels=192 ", "plain"),
        (5, dict(), r"in_channels is \[768\], .* channels: set in_channels=192 of the", "plain"),
        ((2, 5), dict(in_channels=[192, 192], fuse="concat"), None, "frozen"),
        (5, dict(in_channels=192), None, "plain"),
    ],
)
def test_feature_maps_of_backbone_and_neck(out_indices, neck, advice, kind):
    backbone = dict(type="RoPEViT", arch="rope_vit_t14", out_indices=out_indices)
    detector = model = torch.nn.Module()
    if kind == "student":  # of semi-supervised training
        model.student = detector = torch.nn.Module()
    if kind == "frozen":
        backbone = dict(type="FrozenBackbone", backbone=backbone)
    detector.backbone = MODELS.build(backbone)
    detector.neck = MODELS.build(dict(type="SimpleFeaturePyramid", **neck))
    if kind == "several necks":
        detector.neck = torch.nn.Sequential(detector.neck, torch.nn.Identity())
    if advice is None:
        return check_feature_maps(model)
    with pytest.raises(UserError, match=advice) as error:
        RoPEViTChecks().before_run(SimpleNamespace(model=model))
    assert "\n" not in str(error.value)


def test_a_head_of_one_level_has_the_stride_of_any():
    """As the mask branch of CondInst and the semantic branch of HTC."""
    model = torch.nn.Module()
    model.neck, model.mask_head = MODELS.build(dict(type="SimpleFeaturePyramid")), torch.nn.Module()
    model.mask_head.featmap_strides = [7]
    check_strides(model)
    model.mask_head.featmap_strides = [8]
    with pytest.raises(UserError, match=r"mask_head.featmap_strides is \[8\]"):
        check_strides(model)


@pytest.fixture
def normalized(tmp_path):
    """Builds a detector whose backbone names a birder checkpoint with RGB_STATS."""
    pytest.importorskip("birder")
    path = write_checkpoint(birder_net(config=SMALL), tmp_path)

    def build(**preprocessor):
        init_default_scope("mmdet")
        model = Config.fromfile(CONFIGS / "shapes_maskrcnn.py").model
        model.backbone.arch, model.neck.in_channels = SMALL, SMALL["hidden_dim"]
        factors = [2 * factor for factor in model.neck.scale_factors]  # patches of 14, not 7
        model.neck.update(in_stride=14, scale_factors=factors)
        model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(path))
        model.data_preprocessor.update(preprocessor)
        return MODELS.build(model)

    return build


RIGHT = {key: [255 * v for v in values] for key, values in RGB_STATS.items()}
ZERO_ONE = dict(mean=[0.0] * 3, std=[1.0] * 3)


@pytest.mark.parametrize("wrong", [dict(mean=[123.675, 116.28, 103.53]), dict(bgr_to_rgb=False)])
def test_other_normalization_stops_with_the_lines_to_paste(normalized, wrong):
    check_normalization(normalized(**RIGHT, bgr_to_rgb=True))
    with pytest.raises(UserError) as error:
        check_normalization(normalized(**(dict(RIGHT, bgr_to_rgb=True) | wrong)))
    lines = ("mean=[132.3705, 135.303, 124.3635],", "std=[59.058, 58.752, 65.994],", "bgr_to_rgb=")
    assert all(line in str(error.value) for line in lines)


def test_normalization_is_checked_where_the_checkpoint_is_read(normalized):
    model = normalized(**ZERO_ONE)
    hook = HOOKS.build(dict(type="RoPEViTChecks"))
    runner = SimpleNamespace(model=model, _load_from=None, _resume=False, _has_loaded=True)
    with pytest.raises(UserError, match="rgb_stats"):
        hook.before_run(runner)
    model.backbone.init_cfg["checkpoint"] = "gone.pt"
    runner._load_from = "trained.pth"
    hook.before_run(runner)


def test_resume_checks_the_file_that_is_resumed(tmp_path, monkeypatch):
    """ResumableCheckpointHook finds it where a work dir has moved, too."""
    torch.save(dict(weights=torch.ones(1)), tmp_path / "iter_2.pth")
    (tmp_path / "last_checkpoint").write_text("/moved/since/iter_2.pth")
    check = Mock(return_value={})
    monkeypatch.setattr("ropevit_mmdet.engine.hooks.rope_vit_checks.check_start", check)
    runner = SimpleNamespace(model=torch.nn.Identity(), work_dir=tmp_path, _has_loaded=False)
    runner._load_from, runner._resume = None, True
    RoPEViTChecks().before_run(runner)
    settings = dict(load_from=tmp_path / "iter_2.pth", resume=True)
    check.assert_called_once_with(runner.model, settings)


@pytest.mark.parametrize(
    ("name", "head"),
    [("maskrcnn", "roi_head.mask_head"), ("cascade-maskrcnn", "roi_head.bbox_head.1")],
)
def test_another_number_of_classes(name, head):
    config = load(CONFIGS / f"ropevit_{name}.py")
    config.merge_from_dict({f"model.{head}.num_classes": 79})
    with pytest.raises(UserError, match=rf"^{head}\.num_classes is 79, .* has 80 classes"):
        check_num_classes(MODELS.build(config.model), CocoDataset.METAINFO)


@pytest.mark.parametrize(
    ("metainfo", "number"),
    [
        (CocoDataset.METAINFO, 80),
        (dict(thing_classes=("a", "b"), stuff_classes=("c",), classes=("a", "b", "c")), 2),
    ],
)
def test_another_number_of_things(metainfo, number):
    check_num_classes(small_eomt(head=dict(num_things_classes=number)), metainfo)
    message = rf"^panoptic_head\.num_things_classes is 3, .*: set num_things_classes={number},"
    with pytest.raises(UserError, match=message):
        check_num_classes(small_eomt(), metainfo)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_mask_head_needs_masks(wrapped):
    def dataset(**step):
        one = SimpleNamespace(pipeline=SimpleNamespace(transforms=[SimpleNamespace(**step)]))
        return SimpleNamespace(datasets=[SimpleNamespace(dataset=one)]) if wrapped else one

    check_masks(small_eomt(), dataset(with_mask=True))
    check_masks(small_eomt(), SimpleNamespace())  # of a class that has no pipeline
    with pytest.raises(
        UserError, match="^panoptic_head trains with masks, but train_pipeline loads"
    ):
        check_masks(small_eomt(), dataset(with_mask=False))
    config = load(CONFIGS / "ropevit_retinanet.py")
    check_masks(MODELS.build(config.model), dataset())


@pytest.mark.parametrize(("split", "type_"), [("train", "mmdet.CocoDataset"), ("val", CocoDataset)])
def test_the_classes_of_a_config_are_compared_before_the_datasets_are_built(tmp_path, split, type_):
    config = Config.fromfile(write_tiny(tmp_path))
    model = build_detector(config)
    dataset = config[f"{split}_dataloader"].dataset
    dataset.type = type_
    check_config_classes(model, config, ("train", "val"))
    wrapped = dict(type="RepeatDataset", times=2, dataset=dict(dataset, metainfo=None))
    config[f"{split}_dataloader"].dataset = wrapped  # the classes of COCO
    with pytest.raises(UserError, match=r"bbox_head\.num_classes is 2, .* has 80 classes"):
        check_config_classes(model, config, ("train", "val"))


@pytest.mark.parametrize("run", ["train", "test"])
def test_classes_are_compared_before_the_first_iteration(tmp_path, run):
    config = Config.fromfile(write_tiny(tmp_path))
    config.custom_hooks = [dict(type="RoPEViTChecks")]
    config.work_dir = str(tmp_path / "run")
    wrong = dict(train=config.val_dataloader, test=config.test_dataloader)[run]
    wrong.dataset.metainfo = dict(classes=("dark",))
    runner = Runner.from_cfg(config)
    with pytest.raises(UserError, match=r"bbox_head\.num_classes is 2, .* 1 classes"):
        getattr(runner, run)()


BASE = dict(enable=False, base_batch_size=64, passes=1)


@pytest.mark.parametrize(
    ("scaling", "batch", "words"),
    [
        (BASE, (1, 4), "multiply all iterations by 16 and the learning rate by 0.0625 (--auto"),
        (BASE, (8, 8, 4), "multiply all iterations by 1 and the learning rate by 4"),
        (dict(BASE, enable=True), (1, 4), "config does, multiply all iterations by 16"),
    ],
)
def test_another_batch_size_warns(scaling, batch, words):
    assert words in batch_warning(scaling, *batch)


def test_the_batch_size_of_the_config_does_not_warn():
    assert batch_warning(BASE, 16, 4) is batch_warning({}, 1, 4) is None
    assert batch_warning(dict(base_batch_size=4), 1, 4, passes=16) is None
