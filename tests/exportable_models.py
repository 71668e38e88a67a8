"""Small detectors for the tests of `deploy`, with random weights that make every part count."""

import argparse
import atexit
import functools
import importlib
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
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
    """A RetinaNet with random weights that detects objects everywhere."""
    randomize(model.backbone, 0.1)
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
    return with_detections(build_detector(config))


class Exported(NamedTuple):
    """A detector and its files."""

    model: nn.Module
    config: Path
    checkpoint: Path
    onnx: Path


@functools.cache
def exported_detector() -> Exported:
    """A RetinaNet exported by `ropevit export`, once per test process."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    config, checkpoint = directory / "smaller.py", directory / "detector.pth"
    config.write_text(SMALLER)
    torch.manual_seed(0)
    model = with_detections(build_detector(load_config(config)))
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    run_command("export", config, checkpoint, directory / "detector.onnx")
    return Exported(model, config, checkpoint, directory / "detector.onnx")


def run_command(name: str, *argv: object) -> None:
    """Runs a subcommand of `ropevit` in this process."""
    command = importlib.import_module(f"ropevit_cli.{name}")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(arg) for arg in argv]))
