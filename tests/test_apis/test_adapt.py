"""`ropevit adapt`: detectors of mmdet with a RoPE ViT."""

import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from benchmarks import detectors
from ropevit_mmdet import RoPEViT
from ropevit_mmdet.apis import adapt
from ropevit_mmdet.apis.adaptation import check, check_training, conversion, pyramid
from ropevit_mmdet.apis.adaptation.config_file import difference, read_config
from ropevit_mmdet.apis.adaptation.rules import StrideMap, stride_edits
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import resolve_arch
from tests.commands import fails, ropevit
from tests.oracle import SMALL

# Two-stage, one-stage, points, whole strides, necks that stay, one level, queries, masks.
FAMILIES = (
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "retinanet/retinanet_r50_fpn_1x_coco",
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco",
    "reppoints/reppoints-moment_r50_fpn_1x_coco",
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance",
    "pafpn/faster-rcnn_r50_pafpn_1x_coco",
    "yolox/yolox_tiny_8xb8-300e_coco",
    "yolof/yolof_r50-c5_8xb8-1x_coco",
    "centernet/centernet_r18_8xb16-crop512-140e_coco",
    "detr/detr_r50_8xb2-150e_coco",
)
RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco"
PYTHON_STYLE = """
from mmdet.models import FPN, DetDataPreprocessor, FCOS, FCOSHead, ResNet
from mmengine.dataset import DefaultSampler
from torch.optim import SGD

channels = [256, 512, 1024, 2048]
model = dict(
    type=FCOS,
    data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32),
    backbone=dict(type=ResNet, depth=50, out_indices=(0, 1, 2, 3)),
    neck=dict(type=FPN, in_channels=channels, out_channels=32, start_level=1, num_outs=5),
    bbox_head=dict(type=FCOSHead, num_classes=2, in_channels=32, feat_channels=32, stacked_convs=1,
                   strides=[8, 16, 32, 64, 128]),
)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.01, momentum=0.9))
"""


@pytest.fixture(autouse=True)
def unformatted():
    """Configs are formatted, as users' are."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    pytest.importorskip("birder")
    return detectors.tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def unchecked(monkeypatch):
    """`adapt` without the training step."""
    monkeypatch.setattr(conversion, "check_training", lambda config: None)


@pytest.fixture
def small_images(monkeypatch):
    monkeypatch.setattr(check, "_SIZES", ((100, 112), (106, 99)))


@pytest.mark.parametrize("name", FAMILIES, ids=lambda name: name.split("/")[0])
def test_families_train_a_step(name, weights, small_images, tmp_path):
    out = tmp_path / "adapted.py"
    assert ropevit("adapt", f"mmdet::{name}", "--weights", weights, "-o", out) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["adapted.py"]
    assert Config.fromfile(out).model.backbone.type == "RoPEViT"


def test_detectors_predict(weights, small_images, unchecked):
    check_training(adapt(RETINANET, weights), predict=True)


def result_in_the_table(name):
    cells = "| {} | `{}` |".format(*name.split("/", 1))
    (row,) = (line for line in detectors.PAGE.read_text().splitlines() if cells in line)
    return row.split("|")[-2].strip()


def test_every_directory_is_in_the_table():
    assert all(map(result_in_the_table, detectors.rows()))


@pytest.mark.slow
@pytest.mark.parametrize("name", detectors.rows(), ids=lambda name: name.split("/")[0])
def test_rows_of_the_table_are_true(name, weights):
    if name.startswith("boxinst/"):
        pytest.importorskip("skimage")
    state = detectors.trial(name, weights)["result"].partition(":")[0]
    assert result_in_the_table(name).startswith(state)


def test_native_strides_scale_everything_in_pixels(weights, unchecked):
    model = adapt("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco", weights).model
    assert model.neck.to_dict() == dict(
        type="SimpleFeaturePyramid", in_channels=192, out_channels=256, in_stride=14,
        scale_factors=(4, 2, 1, 0.5), num_outs=5,
    )  # fmt: skip
    assert model.rpn_head.anchor_generator.strides == [3.5, 7, 14, 28, 56]
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        assert (extractor.featmap_strides, extractor.finest_scale) == ([3.5, 7, 14, 28], 49)
    preprocessor = model.data_preprocessor
    assert preprocessor.mean == [132.3705, 135.303, 124.3635] and preprocessor.bgr_to_rgb
    assert preprocessor.pad_size_divisor == 28
    backbone = model.backbone
    assert (backbone.window_size, backbone.pos_embed_mode) == (16, "tile")
    assert backbone.rope_interpolation == 1333


def test_powers_of_2_leave_the_heads_as_they_are(weights, unchecked):
    name = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco"
    before, model = read_config(name)[0]["model"], adapt(name, weights, strides="pow2").model
    changed = difference(before, model.to_dict())
    assert changed.keys() == {"data_preprocessor", "backbone", "neck"}
    assert model.neck.out_strides == [4, 8, 16, 32, 64]
    assert model.data_preprocessor.pad_size_divisor == 224  # of 14 and 32


def test_whole_strides_and_teachers_need_powers_of_2(weights, unchecked, capsys, tmp_path):
    for name, cause in (
        ("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance", "must be whole pixels"),
        ("lad/lad_r50-paa-r101_fpn_2xb8_coco_1x", "the teacher has strides of 4"),
    ):
        assert adapt(f"mmdet::{name}", weights).model.neck.out_strides == [8, 16, 32, 64, 128]
        options = ("--weights", weights, "--strides", "native", "-o", tmp_path / "x.py")
        assert cause in fails(capsys, "adapt", f"mmdet::{name}", *options)
    assert not list(tmp_path.iterdir())


def test_ranges_keep_their_open_ends():
    map = StrideMap([8, 16, 32, 64, 128], 14)
    edits = dict(stride_edits(dict(type="FCOSHead", num_classes=1, in_channels=1), map))
    assert edits["regress_ranges"] == ((-1, 56), (56, 112), (112, 224), (224, 448), (448, 1e8))
    assert dict(stride_edits(dict(type="PointAssigner", scale=4), map)) == {"scale": 7}
    edits = dict(stride_edits(dict(type="FusedSemanticHead", seg_scale_factor=1 / 8), map))
    assert edits == {"seg_scale_factor": 1 / 7}


@pytest.mark.parametrize(
    ("old", "base", "new"),
    [
        ((4, 8, 16, 32), 14, [3.5, 7, 14, 28]),
        ((4, 8, 16, 32), 16, [4, 8, 16, 32]),
        ((8, 16, 32, 64, 85.3, 128), 14, [7, 14, 28, 56, 112, 224]),  # an SSD of 300 pixels
        ((4, 4), 14, [3.5, 3.5]),  # the stacks of an hourglass
        ((8, 16, 32), 8, [8, 16, 32]),
    ],
)
def test_levels_get_the_nearest_strides(old, base, new):
    map = StrideMap(old, base)
    assert map.new == new
    if len(set(old)) == len(old):
        assert map.strides(list(old)[::-1]) == new[::-1]  # YOLOv3


def test_images_are_scaled_with_all_their_sizes(weights, unchecked):
    config = adapt("mmdet::yolox/yolox_tiny_8xb8-300e_coco", weights, img_size=448)
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert steps["Mosaic"].img_scale == (689, 689)  # 640 of 416
    assert steps["RandomAffine"].border == (-345, -345)
    test = {step.type: step for step in config.test_dataloader.dataset.pipeline}
    assert test["Resize"].scale == (448, 448)
    (resize,) = config.model.data_preprocessor.batch_augments
    assert (resize.random_size_range, resize.size_divisor) == ((345, 689), 28)
    assert config.model.backbone.rope_interpolation == 448


def test_small_images_have_no_windows(weights, unchecked):
    backbone = adapt(RETINANET, weights, img_size=224).model.backbone
    assert not {"window_size", "pos_embed_mode", "rope_interpolation"} & backbone.keys()


def test_optimizer_keeps_what_holds_for_other_parts(weights, unchecked):
    wrapper = adapt("mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco", weights)
    wrapper = wrapper.optim_wrapper
    assert (wrapper.optimizer.type, wrapper.optimizer.lr) == ("AdamW", 0.0002)
    assert wrapper.clip_grad.max_norm == 0.1
    assert wrapper.paramwise_cfg.to_dict() == dict(
        layer_decay_rate=0.7,
        custom_keys=dict(sampling_offsets=dict(lr_mult=0.1), reference_points=dict(lr_mult=0.1)),
    )
    config = adapt("mmdet::yolox/yolox_tiny_8xb8-300e_coco", weights)
    assert config.optim_wrapper.optimizer.lr == 1e-4  # at batch size 64
    assert config.param_scheduler[1].eta_min_ratio == 0.05  # eta_min of SGD is above 1e-4


def test_what_is_written_is_what_is_returned(weights, unchecked, tmp_path):
    """Of a base with list values, of a dumped config, and of a Python-style one."""
    dumped, style = tmp_path / "dumped.py", tmp_path / "sub" / "style.py"
    Config.fromfile(f"{detectors.CONFIGS}/cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py").dump(
        dumped
    )
    style.parent.mkdir()
    style.write_text(PYTHON_STYLE)
    for source in ("mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco",
                   dumped, style):  # fmt: skip
        out = tmp_path / "out.py"
        written, returned = adapt(source, weights, out=out), adapt(source, weights)
        assert read_config(out)[0] == read_config(returned)[0]
        assert read_config(written)[0] == read_config(returned)[0]
        assert ("_base_" in out.read_text()) == (source != style)
        assert len(out.read_text().splitlines()) < 160


def test_a_packaged_base_has_no_path():
    for name in ("ropevit_retinanet", "ropevit_retinanet.py"):
        assert read_config(name)[1] == "ropevit_mmdet::ropevit_retinanet.py"
    assert read_config("configs/ropevit_retinanet.py")[1].endswith("/configs/ropevit_retinanet.py")


def test_python_style_config_trains(weights, small_images, tmp_path):
    (tmp_path / "style.py").write_text(PYTHON_STYLE)
    adapted = adapt(tmp_path / "style.py", weights, out=tmp_path / "out.py")
    assert adapted.model.bbox_head.strides == [7, 14, 28, 56, 112]
    assert type_name(adapted.model.bbox_head) == "FCOSHead"


def test_weights_of_the_old_detector_are_dropped(weights, unchecked):
    config = adapt("mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes", weights)
    assert config.load_from is None and config.default_hooks.checks.type == "RoPEViTChecks"
    old = Config(read_config(RETINANET)[0])
    old.model.init_cfg = [dict(type="Pretrained", checkpoint="detector.pth")]
    assert adapt(old, weights).model.init_cfg is None


@pytest.mark.parametrize("backbone", [{}, dict(final_norm=False), dict(out_indices=1)], ids=str)
def test_weights_of_an_own_detector_bring_its_settings(backbone, unchecked, tmp_path):
    arch = dict(SMALL, rope_temperature=50.0)
    stats = dict(mean=[51.0, 102.0, 153.0], std=[25.5] * 3)
    model = dict(
        backbone=dict(type="RoPEViT", arch=arch, **backbone),
        data_preprocessor=dict(stats, bgr_to_rgb=True),
    )
    weights = RoPEViT(arch, **backbone).state_dict()
    state = {f"backbone.{key}": value for key, value in weights.items()}
    content = dict(state_dict=state, meta=dict(cfg=f"model = {model}"))
    torch.save(content, tmp_path / "iter_1.pth")
    adapted = adapt(RETINANET, str(tmp_path / "iter_1.pth")).model
    assert resolve_arch(adapted.backbone.arch.to_dict()) == resolve_arch(arch)
    assert {key: adapted.data_preprocessor[key] for key in stats} == stats
    loaded = MODELS.build(adapted.backbone)
    loaded.init_weights()
    assert all(map(torch.equal, loaded.state_dict().values(), weights.values()))


def test_weights_without_normalization_are_a_warning(weights, unchecked, monkeypatch, tmp_path):
    warnings = []
    monkeypatch.setattr(conversion, "print_log", lambda text, *args: warnings.append(text))
    content = torch.load(weights, weights_only=True)
    torch.save({**content, "rgb_stats": None}, tmp_path / "bare.pt")
    assert adapt(RETINANET, str(tmp_path / "bare.pt")).model.data_preprocessor.mean[0] == 123.675
    adapt(RETINANET, weights)
    (warning,) = warnings
    assert "bare.pt has no mean and std" in warning


class OwnNeck(torch.nn.Module):
    """A neck whose arguments have other names than those of mmdet."""

    def __init__(self, widths):
        super().__init__()

    def forward(self, maps):
        return maps


@pytest.mark.parametrize(
    ("neck", "problem"),
    [
        (
            dict(type="NoNeck", in_channels=[256]),
            r"NoNeck cannot be built here \(KeyError",
        ),
        (dict(type="OwnNeck", widths=[256]), "neck OwnNeck has no in_channels"),
    ],
)
def test_necks_that_cannot_be_adapted_are_named(neck, problem, weights, unchecked, monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, "OwnNeck", OwnNeck)
    config = Config(read_config(RETINANET)[0])
    config.model.neck = neck
    with pytest.raises(UserError, match=problem):
        adapt(config, weights)


def test_a_backbone_that_is_not_installed_has_the_levels_of_its_neck(
    weights, unchecked, monkeypatch
):
    warnings = []
    monkeypatch.setattr(pyramid, "print_log", lambda text, *args: warnings.append(text))
    config = Config(read_config(RETINANET)[0])
    config.model.backbone = dict(type="mmpretrain.ConvNeXt")
    assert adapt(config, weights).model == adapt(RETINANET, weights).model
    (warning,) = warnings
    assert re.search(r"^ConvNeXt cannot be built here \(.*strides .* \[4\.0, 8\.0, 16", warning)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20", "it is a classifier"),
        ("qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base", "it tracks objects in videos"),
        ("glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365", "it has a language model"),
        ("common/ms_3x_coco", "defines no model"),
        ("retinanet/none", "does not exist"),
        ("tridentnet/tridentnet_r50-caffe_1x_coco", "needs the branches of its backbone"),
    ],
)
def test_what_cannot_be_adapted_is_named(name, reason, weights, capsys, tmp_path):
    options = ("--weights", weights, "-o", tmp_path / "out.py")
    assert reason in fails(capsys, "adapt", f"mmdet::{name}", *options)
    assert not list(tmp_path.iterdir())


def test_a_config_is_not_its_own_base(weights, unchecked, capsys, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(f'_base_ = "{RETINANET}.py"\n')
    assert "cannot write" in fails(capsys, "adapt", own, "--weights", weights, "-o", own)
    assert own.read_text().startswith("_base_")
