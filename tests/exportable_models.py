"""Small detectors for the tests of `deploy`, with random weights that make every part count."""

import argparse
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from ropevit_mmdet import RoPEViT, SimpleFeaturePyramid
from ropevit_mmdet.engine.config import build_detector, load_config
from tests.processes import ROOT

SMALL_ARCH = dict(
    patch_size=14, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_reg_tokens=4
)
# Two blocks, one of them global, both maps and few channels: translation takes time per operator.
SMALLER = f"""
_base_ = [{str(ROOT / "configs" / "shapes_retinanet.py")!r}]
model = dict(
    backbone=dict(
        arch=dict(num_layers=2, hidden_dim=48), global_attn_indices=[1], out_indices=[0, 1]
    ),
    neck=dict(in_channels=[48, 48], fuse="concat"),
    bbox_head=dict(stacked_convs=1),
)
"""
PYRAMID = dict(in_channels=32, out_channels=8)
QUERIES = ("dino", "eomt")
WINDOWED = dict(pretrain_img_size=56, window_size=4, global_attn_indices=(1,))


class Encoder(nn.Module):
    """Backbone and neck of a detector."""

    def __init__(self, backbone: dict, neck: dict | None = None) -> None:
        super().__init__()
        self.backbone = RoPEViT(**{"arch": SMALL_ARCH, **backbone})
        self.neck = None if neck is None else SimpleFeaturePyramid(**PYRAMID | neck)
        randomize(self, 0.2)
        self.eval()

    def extract_feat(self, images):
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)


def randomize(model: nn.Module, std: float) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)


def with_detections(model: nn.Module) -> nn.Module:
    """A detector with random weights that detects objects everywhere."""
    randomize(model.backbone, 0.1)
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or "head" not in name:
            continue
        if "roi_head" in name or "rpn_head" in name:
            nn.init.normal_(layer.weight, std=0.02 if "reg" in name else 0.1)
        elif re.search(r"(retina|conv|atss|rtm)_cls", name):
            nn.init.normal_(layer.weight, std=0.2)
            nn.init.constant_(layer.bias, -1.0)
        elif re.search(r"(retina|conv|atss|rtm)_reg", name):
            nn.init.normal_(layer.weight, std=0.03)
    return model.eval()


def small_detector(name: str = "retinanet", num_layers: int = 2) -> nn.Module:
    """A COCO config's detector, small: patch 14, tiled embedding, windows and global blocks."""
    if name in QUERIES:
        return small_query_detector(name)
    config = load_config(ROOT / "configs" / f"ropevit_{name}.py")
    config.model.backbone.update(arch={**SMALL_ARCH, "num_layers": num_layers}, **WINDOWED)
    config.model.backbone.update(rope_interpolation=112, init_cfg=None)
    config.model.backbone.update(global_attn_indices=(num_layers - 1,))
    config.model.neck.update(in_channels=32, out_channels=16, scale_factors=(2, 1), num_outs=3)
    if "roi_head" in config.model:
        return with_detections(build_detector(small_two_stage(config)))
    head, strides = config.model.bbox_head, [7, 14, 28]
    head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    if "anchor_generator" in head:
        head.anchor_generator.strides = strides
    else:
        head.update(strides=strides, regress_ranges=((-1, 56), (56, 112), (112, 1e8)))
    config.model.test_cfg.nms_pre = 300
    return with_detections(build_detector(config))


def small_two_stage(config: Config) -> Config:
    """Few channels, proposals and detections, RoIs of two levels."""
    model, roi_head, small = config.model, config.model.roi_head, dict(in_channels=16)
    model.rpn_head.update(small, feat_channels=16, num_convs=1)
    model.rpn_head.anchor_generator.strides = [7, 14, 28]
    for extractor in (roi_head.bbox_roi_extractor, roi_head.mask_roi_extractor):
        extractor.update(out_channels=16, featmap_strides=[7, 14], finest_scale=20)
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
    for head in heads:
        head.update(small, conv_out_channels=16, fc_out_channels=32, num_classes=3)
    roi_head.mask_head.update(small, conv_out_channels=16, num_classes=3, num_convs=1)
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=60)
    model.test_cfg.rcnn.update(max_per_img=20)
    return config


def small_query_detector(name: str) -> nn.Module:
    """`shapes_dino.py` or `shapes_eomt.py` with few layers and queries, and random weights."""
    config = load_config(ROOT / "configs" / f"shapes_{name}.py")
    model, is_dino = config.model, name == "dino"
    model.backbone.update(arch={**SMALL_ARCH, "num_layers": 1 if is_dino else 3}, **WINDOWED)
    model.backbone.update(patch_size=14, global_attn_indices=())
    if is_dino:
        model.neck.update(in_channels=32, in_stride=14, scale_factors=(2, 1, 0.5))
        model.update(num_queries=12, test_cfg=dict(max_per_img=8))
        model.encoder.num_layers, model.decoder.num_layers = 1, 2
    else:
        model.panoptic_head.update(in_channels=32, patch_size=14, num_queries=10)
        model.test_cfg.max_per_image = 8
    detector = build_detector(config)
    randomize(detector.backbone, 0.1)
    head = detector.bbox_head if is_dino else detector.panoptic_head
    if is_dino:
        detector.init_weights()
    randomize(head, 0.05 if is_dino else 0.3)
    return detector.eval()


class Exported(NamedTuple):
    """A detector and its files."""

    model: nn.Module
    config: Path
    checkpoint: Path
    onnx: Path


def exported_detector(directory: Path) -> Exported:
    """A RetinaNet exported by `ropevit export`, unless the directory has its file."""
    directory.mkdir(exist_ok=True)
    config, checkpoint, onnx = (directory / name for name in ("a.py", "a.pth", "a.onnx"))
    config.write_text(SMALLER)
    torch.manual_seed(0)
    model = with_detections(build_detector(load_config(config)))
    if not onnx.exists():
        torch.save({"state_dict": model.state_dict()}, checkpoint)
        run_command("export", config, checkpoint, onnx)
    return Exported(model, config, checkpoint, onnx)


def run_command(name: str, *argv: object) -> None:
    """Runs a subcommand of `ropevit` in this process."""
    command = importlib.import_module(f"ropevit_cli.{name}")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(arg) for arg in argv]))


def eager(graph: nn.Module):
    """A graph as the function that a file's runner is."""

    @torch.no_grad()
    def run(images, score_thr=None):
        threshold = getattr(graph.head, "score_thr", torch.zeros(()))
        own = threshold.clone()
        threshold.copy_(own if score_thr is None else torch.tensor(score_thr))
        outputs = graph(images)
        threshold.copy_(own)
        return outputs

    return run
