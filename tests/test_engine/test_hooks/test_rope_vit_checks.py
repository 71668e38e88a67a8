"""The checks at the start of a run: strides, colors, classes and the batch."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ropevit_mmdet.engine.hooks.rope_vit_checks import (
    batch_warning,
    check_colors,
    check_num_classes,
    check_strides,
)
from ropevit_mmdet.errors import user_message
from tests.oracle import RGB_STATS, SMALL, birder_net, write_checkpoint
from tests.test_configs import CONFIGS, load
from tests.tiny_coco import write_tiny


def detector(**options):
    config = load(CONFIGS / "ropevit_maskrcnn.py")
    config.merge_from_dict(options)
    return MODELS.build(config.model)


def test_anchors_of_other_strides_stop_the_run():
    strides = [4, 8, 16, 32, 64]
    model = detector(**{"model.rpn_head.anchor_generator.strides": strides})
    with pytest.raises(
        ValueError, match=r"rpn_head\..*\[4, 8, 16, 32, 64\].*\[3.5, 7, 14, 28, 56\]"
    ):
        check_strides(model)


@pytest.mark.parametrize("extractor", ["bbox_roi_extractor", "mask_roi_extractor"])
def test_roi_extractors_of_other_strides_stop_the_run(extractor):
    key = f"model.roi_head.{extractor}.featmap_strides"
    model = detector(**{key: [4, 8, 16, 32]})
    with pytest.raises(ValueError, match=rf"{extractor}\.featmap_strides.*\[4, 8, 16, 32\].*3.5"):
        check_strides(model)


def test_resampled_strides_are_what_counts():
    model = detector(**{"model.neck.out_strides": (4, 8, 16, 32, 64)})
    with pytest.raises(ValueError, match=r"\[4, 8, 16, 32, 64\]"):
        check_strides(model)


def test_points_of_other_strides_are_set_where_the_head_takes_them():
    config = load(CONFIGS / "ropevit_fcos.py")
    config.model.neck.out_strides = (8, 16, 32, 64, 128)
    message = r"set bbox_head\.strides=\[8.*, and its regress_ranges"
    with pytest.raises(ValueError, match=message):
        check_strides(MODELS.build(config.model))
    config.model.bbox_head.strides = [8, 16, 32, 64, 128]
    check_strides(MODELS.build(config.model))


@pytest.fixture
def colored(tmp_path):
    """A shapes detector whose backbone names a birder checkpoint with RGB_STATS."""
    pytest.importorskip("birder")
    path = write_checkpoint(birder_net(config=SMALL), tmp_path)

    def build(**preprocessor):
        init_default_scope("mmdet")
        model = Config.fromfile(CONFIGS / "shapes_maskrcnn.py").model
        model.backbone.arch = SMALL
        model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(path))
        model.data_preprocessor.update(preprocessor)
        return MODELS.build(model)

    return build


RIGHT = {key: [255 * v for v in values] for key, values in RGB_STATS.items()}


def test_colors_of_the_checkpoint_pass(colored):
    check_colors(colored(**RIGHT, bgr_to_rgb=True))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(mean=[123.675, 116.28, 103.53]),
        dict(std=[58.395, 57.12, 57.375]),
        dict(bgr_to_rgb=False),
    ],
)
def test_other_colors_stop_the_run_with_the_lines_to_paste(colored, wrong):
    with pytest.raises(ValueError) as error:
        check_colors(colored(**(dict(RIGHT, bgr_to_rgb=True) | wrong)))
    assert "mean=[132.3705, 135.303, 124.3635]" in str(error.value)
    assert "std=[59.058, 58.752, 65.994]" in str(error.value)
    assert "bgr_to_rgb=True" in str(error.value)


def test_the_hook_runs_before_a_run(colored):
    from mmdet.registry import HOOKS

    class Runner:
        model = colored(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
        _load_from, _resume = None, False

    hook = HOOKS.build(dict(type="RoPEViTChecks"))
    with pytest.raises(ValueError, match="rgb_stats"):
        hook.before_run(Runner)
    assert isinstance(Runner.model, torch.nn.Module)
    # A trained detector is tested without the file that its backbone once began with.
    Runner.model.backbone.init_cfg["checkpoint"] = "gone.pt"
    Runner._load_from = "trained.pth"
    hook.before_run(Runner)


def test_weights_that_come_from_no_file_have_no_colors(colored):
    model = colored(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    model.backbone.init_cfg = dict(type="TruncNormal", layer="Linear", std=0.02)
    check_colors(model)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("retinanet", "bbox_head"),
        ("maskrcnn", "roi_head.mask_head"),
        ("cascade-maskrcnn", "roi_head.bbox_head.1"),
    ],
)
def test_a_head_of_another_number_of_classes_stops_the_run(name, head):
    config = load(CONFIGS / f"ropevit_{name}.py")
    config.merge_from_dict({f"model.{head}.num_classes": 79})
    data = SimpleNamespace(metainfo=CocoDataset.METAINFO)
    with pytest.raises(ValueError, match=rf"^{head}\.num_classes is 79, .* has 80 classes"):
        check_num_classes(MODELS.build(config.model), data)


@pytest.mark.parametrize("run", ["train", "test"])
def test_classes_are_counted_before_the_first_iteration(tmp_path, run):
    config = Config.fromfile(write_tiny(tmp_path))
    config.custom_hooks = [dict(type="RoPEViTChecks")]
    config.work_dir = str(tmp_path / "run")
    wrong = dict(train=config.val_dataloader, test=config.test_dataloader)[run]
    wrong.dataset.metainfo = dict(classes=("dark",))
    runner = Runner.from_cfg(config)
    with pytest.raises(ValueError, match=r"bbox_head\.num_classes is 2, .* 1 classes") as caught:
        getattr(runner, run)()
    assert user_message(caught.value)


def test_a_batch_that_the_learning_rate_is_not_for_is_told():
    meant = dict(enable=False, base_batch_size=64, passes=1)
    assert batch_warning(meant, 16, 4) is batch_warning({}, 1, 4) is None
    assert batch_warning(dict(base_batch_size=4), 1, 4, passes=16) is None  # it does not say
    told = batch_warning(meant, 1, 4)
    assert "a step has 4 images (1 x 4), the config is made for 64" in told
    assert "multiply it by 0.0625 (--auto-scale-lr does so)" in told
    assert told.endswith("0.0625 times the images that its schedule means")
    assert "is scaled to it" in batch_warning(dict(meant, enable=True), 1, 4)


def test_a_step_of_other_passes_is_told():
    meant = dict(enable=False, base_batch_size=64, passes=1)
    told = batch_warning(meant, 1, 4, passes=16)
    assert "rate fits" in told and "0.0625 times the images" in told
    assert "16 times as many" in told and "base_batch_size=4, passes=16" in told
    assert "scaled to a pass, not to a step" in batch_warning(dict(meant, enable=True), 1, 4, 16)
    told = batch_warning(meant, 8, 8, passes=4)
    assert "a step has 256 images (8 x 8 in 4 passes)" in told and "multiply it by 4," in told
    told = batch_warning(dict(base_batch_size=2, passes=32), 1, 1, passes=64)
    assert "rate fits" in told and "2 times as many" in told
