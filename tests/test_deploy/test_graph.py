"""Export: the form of a model that a graph is made of, and the comparison of graph and model."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from ropevit_mmdet import RoPEViT, SimpleFeaturePyramid
from ropevit_mmdet.deploy import check
from ropevit_mmdet.deploy.check import Detections, detections, differences
from ropevit_mmdet.deploy.detector import DynamicDetector
from ropevit_mmdet.deploy.features import DynamicFeatures
from ropevit_mmdet.deploy.metadata import resizing
from ropevit_mmdet.engine.config import build_detector, load_config
from tests.processes import ROOT

SMALL_ARCH = dict(
    patch_size=14, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_reg_tokens=4
)
WINDOWED = dict(pretrain_img_size=56, window_size=4, global_attn_indices=(1,))
INTERLEAVED = dict(rope_rot_type="interleaved", num_reg_tokens=0)
HMLP = dict(stem_type="hmlp", patch_size=16, pos_embed_antialias=True)
GATED = dict(mlp_layer_type="SwiGLU_FFN", norm_layer_type="RMSNorm", layer_scale_init_value=0.5)
GATED |= dict(attn_norm=True, rope_grid_indexing="xy", rope_grid_offset=1)
SIZES = [(56, 56), (56, 112), (70, 154), (14, 14), (1, 1), (57, 100), (200, 131), (20, 300)]
LEVELS = dict(scale_factors=(2, 1, 0.5), num_outs=5, add_extra_convs="on_output")


class Encoder(nn.Module):
    """The part of a detector that features are exported of."""

    def __init__(self, backbone: dict, neck: dict | None = None) -> None:
        super().__init__()
        self.backbone = RoPEViT(**{"arch": SMALL_ARCH, **backbone})
        self.neck = None if neck is None else SimpleFeaturePyramid(32, 8, **neck)
        liven(self)
        self.eval()

    def extract_feat(self, images):
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)


def liven(model: nn.Module, std: float = 0.2) -> None:
    """Weights that make every part count."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)


def loud(model: nn.Module) -> nn.Module:
    """A RetinaNet with random weights that finds objects everywhere."""
    liven(model.backbone, 0.1)
    nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.2)
    nn.init.constant_(model.bbox_head.retina_cls.bias, -1.0)
    nn.init.normal_(model.bbox_head.retina_reg.weight, std=0.03)
    return model.eval()


def small_retinanet() -> nn.Module:
    """The COCO config's RetinaNet, small: patch 14, tiled embedding, windows and global blocks."""
    config = load_config(ROOT / "configs" / "ropevit_retinanet.py")
    config.model.backbone.update(arch={**SMALL_ARCH, "num_layers": 2}, **WINDOWED)
    config.model.backbone.update(rope_interpolation=112, init_cfg=None)
    config.model.neck.update(in_channels=32, out_channels=16, scale_factors=(2, 1), num_outs=3)
    config.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    config.model.bbox_head.anchor_generator.strides = [7, 14, 28]
    return loud(build_detector(config))


@pytest.mark.parametrize(
    ("backbone", "neck"),
    [
        (dict(), None),
        (dict(rope_interpolation=200, pos_embed_mode="tile"), dict()),
        (WINDOWED, dict()),
        (dict(WINDOWED, global_attn_indices=(), pos_embed_mode="tile"), LEVELS),
        (dict(WINDOWED, global_attn_indices=(0, 2), rope_interpolation="none"), None),
        (dict(WINDOWED, out_indices=(0, 1, 2)), None),
        (WINDOWED, dict(out_strides=(4, 8, 16, 32, 64))),
        (dict(WINDOWED, patch_size=16), dict(in_stride=16)),
        (dict(WINDOWED, arch={**SMALL_ARCH, "rope_style": "axial", **INTERLEAVED}), None),
        (dict(WINDOWED, pretrain_img_size=64, arch={**SMALL_ARCH, **HMLP}), None),
        (dict(WINDOWED, arch={**SMALL_ARCH, **GATED}), None),
        (dict(WINDOWED, arch={**SMALL_ARCH, "rope_style": "centered_separate"}), None),
        (dict(arch={**SMALL_ARCH, "class_token": False, "num_reg_tokens": 0}, **WINDOWED), None),
        (dict(arch={**SMALL_ARCH, "pos_embed_special_tokens": False}, **WINDOWED), None),
        (dict(arch={**SMALL_ARCH, "qk_norm": True, **INTERLEAVED}), None),
    ],
)
def test_the_graph_form_is_the_model(backbone, neck):
    model = Encoder(backbone, neck).double()
    graph = DynamicFeatures(model)
    for size in SIZES:
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected, got = model.extract_feat(images), graph(images)
        assert len(expected) == len(got) == graph.num_maps
        for want, have in zip(expected, got):
            torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)


def test_filled_up_windows_leave_no_trace_of_their_filling():
    """Not by chance: without the mask the ragged windows are wrong."""
    model = Encoder(WINDOWED)
    graph, images = DynamicFeatures(model), torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        (expected,), (masked,) = model.extract_feat(images), graph(images)
        with pytest.MonkeyPatch.context() as patch:
            everything = torch.ones(4, 1, 1, 16 + 5, dtype=torch.bool)
            patch.setattr("ropevit_mmdet.deploy.features._Layout.mask", lambda *_: everything)
            (unmasked,) = graph(images)
    torch.testing.assert_close(masked, expected)
    assert (unmasked - expected).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(score_thr=0.5),
        dict(score_thr=0.9999),
        dict(nms_pre=7, max_per_img=3),
        dict(nms=dict(type="nms", iou_threshold=0.2, class_agnostic=True)),
        dict(nms=dict(type="nms", iou_threshold=0.6), min_bbox_size=-1),
    ],
)
def test_the_graph_form_of_retinanet_is_mmdets(settings):
    model = small_retinanet()
    model.bbox_head.test_cfg.update(settings)
    graph = DynamicDetector(model)
    for size in [*check.check_sizes(model), (113, 30)]:
        image = check.example_image(size)
        expected = detections(model, image)
        with torch.no_grad():
            got = graph(image)
        assert torch.equal(got.labels, expected.labels)
        torch.testing.assert_close(got.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.boxes, expected.boxes, rtol=0, atol=1e-3)
        found = len(expected.scores)
        assert (found == 0) if settings.get("score_thr") == 0.9999 else (found > 2)


def test_boxes_end_at_the_image_not_at_its_padding():
    model = small_retinanet()
    nn.init.constant_(model.bbox_head.retina_reg.bias, 1.0)  # large boxes
    boxes = detections(model, check.example_image((50, 60))).boxes
    assert boxes[:, 2].max() == 60 and boxes[:, 3].max() == 50
    with torch.no_grad():
        got = DynamicDetector(model)(check.example_image((50, 60))).boxes
    torch.testing.assert_close(got, boxes, rtol=0, atol=1e-3)


def test_differences_see_what_is_wrong_and_excuse_ties():
    cfg = Config(dict(score_thr=0.05, nms=dict(iou_threshold=0.5), max_per_img=9))
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    found = Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]))
    assert differences(found, found, cfg) == (0, 0)
    moved = found._replace(boxes=boxes + 2, scores=torch.tensor([0.9, 0.5]))
    assert differences(found, moved, cfg)[0] == 2  # both, so that it is no tie
    gone = found._replace(boxes=boxes + torch.tensor([[0.0], [200.0]]))
    assert differences(found, gone, cfg)[0] == 200
    louder = found._replace(scores=torch.tensor([0.9, 0.6]))
    assert differences(found, louder, cfg)[1] == pytest.approx(0.1)
    other = found._replace(labels=torch.tensor([0, 2]))
    assert differences(found, other, cfg)[0] == float("inf")
    one = Detections(*(part[:1] for part in found))
    assert differences(found, one, cfg)[0] == differences(one, found, cfg)[0] == float("inf")
    edge = found._replace(scores=torch.tensor([0.9, 0.05001]))  # at the threshold
    assert differences(edge, one, cfg) == (0, 0)
    twin = Detections(boxes[1:] + 1, torch.tensor([0.50001]), torch.tensor([1]))  # which is first?
    tied = Detections(*(torch.cat(parts) for parts in zip(one, twin)))
    assert differences(found, tied, cfg) == (0, 0)


def test_pipelines_that_do_more_are_not_described():
    load, pack = dict(type="LoadImageFromFile"), dict(type="PackDetInputs")

    def of(*steps):
        pipeline = [load, *steps, dict(type="LoadAnnotations", with_bbox=True), pack]
        return resizing(Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)))))

    resize = dict(type="Resize", scale=(1333, 800), keep_ratio=True)
    assert of(resize) == {"scale": [1333, 800], "keep_ratio": True}
    assert of(dict(type="Resize", scale=640)) == {"scale": [640, 640], "keep_ratio": False}
    assert of() == {"scale": None, "keep_ratio": True}
    assert of(resize, dict(type="Pad", size_divisor=32)) is None
    assert of({**resize, "backend": "pillow"}) is None
    assert of(dict(type="CenterCrop", crop_size=(3, 3))) is None
