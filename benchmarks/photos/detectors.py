"""Configs of the detectors: ours, MMDetection's ResNets, torchvision's and birder's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict

from benchmarks.heads import use_backbone
from benchmarks.photos.datasets import Photos
from ropevit_mmdet.engine.config import load_config, use_amp

STRIDES = (7, 14, 28)
_MIDDLE = STRIDES[0] * 2**1.25  # the middle of 3 levels with 2 anchor sizes each, at scale 1


def ours(photos: Photos, name: str, weights: Path | None = None) -> Config:
    """A config of the shapes dataset, also with a backbone that birder's script pretrained."""
    config = load_config(f"configs/shapes_{name}.py")
    if weights:
        use_backbone(config, load_config("configs/shapes_transfer.py"), weights)
    fit(config.model, photos)
    return config


def large(photos: Photos, weights: Path | None = None) -> Config:
    """`configs/custom_coco.py`, RoPE ViT-B for a GPU, with birder's published weights or a file."""
    config = load_config("configs/custom_coco.py")
    if weights:
        config.model.backbone.init_cfg.checkpoint = str(weights)
    config.model.data_preprocessor.batch_augments = None  # photos have one size already
    fit_rois(config.model.roi_head, photos)
    if torch.cuda.is_available():
        use_amp(config)
    return config


def resnet(photos: Photos, name: str, depth: int) -> Config:
    """MMDetection's ResNet with FPN and the heads of `ours`."""
    config, other = (
        load_config(f"configs/shapes_{name}.py"),
        load_config("configs/shapes_resnet18.py"),
    )
    model, parts = config.model, other.model
    heads = () if name == "retinanet" else ("rpn_head", "roi_head")
    for part in ("data_preprocessor", "backbone", "neck", *heads):
        model[part] = parts[part]  # update() would merge them
    model.backbone.depth = depth
    if depth > 34:
        model.neck.in_channels = [4 * channels for channels in model.neck.in_channels]
    if name == "retinanet":  # its strides are 8 to 32
        model.neck.update(start_level=1, num_outs=3)
        model.bbox_head.anchor_generator.strides = [8, 16, 32]
    fit(model, photos)
    return config


def peer(photos: Photos, library: str, name: str) -> Config:
    """A detector of another library, on the same batches and with the same optimizer."""
    config = load_config("configs/shapes_maskrcnn.py")
    divisor = photos.square if library == "birder" else 32  # its position embedding has one size
    preprocessor = dict(config.model.data_preprocessor, pad_size_divisor=divisor)
    config.model = ConfigDict(
        type="PeerDetector",
        library=library,
        name=name,
        num_classes=len(photos.classes),
        size=photos.square,
        anchor=dict(center=photos.center, ratio=photos.ratio),
        has_masks=photos.has_masks,
        data_preprocessor=preprocessor,
    )
    config.custom_imports.imports.append("benchmarks.photos.peers")
    return config


def fit(model: ConfigDict, photos: Photos) -> None:
    """Sets classes, anchors and masks of a model."""
    model.data_preprocessor.pad_mask = photos.has_masks
    classes, scale = dict(num_classes=len(photos.classes)), photos.center / _MIDDLE
    if "panoptic_head" in model:
        things = dict(num_things_classes=len(photos.classes))
        model.panoptic_head.update(things)
        model.panoptic_fusion_head.update(things)
        model.test_cfg.max_per_image = min(
            50, model.panoptic_head.num_queries * len(photos.classes)
        )
        return
    for key in ("rpn_head", "bbox_head"):
        if generator := model.get(key, {}).get("anchor_generator"):
            generator.ratios = [photos.ratio]
            scale *= STRIDES[0] * 4 / generator.strides[-1]
            one_stage = "octave_base_scale" in generator
            generator.update(octave_base_scale=scale) if one_stage else generator.update(
                scales=[0.9 * scale, 1.8 * scale]
            )
    if "roi_head" in model:
        fit_rois(model.roi_head, photos)
    else:
        model.bbox_head.update(classes)


def fit_rois(roi_head: ConfigDict, photos: Photos) -> None:
    """Sets the classes of Mask R-CNN's heads; without masks it becomes Faster R-CNN."""
    for head in (roi_head.bbox_head, roi_head.mask_head):
        head.num_classes = len(photos.classes)
    if not photos.has_masks:
        roi_head.update(mask_head=None, mask_roi_extractor=None)


HEADS = {"RetinaNet": "retinanet", "Mask R-CNN": "maskrcnn", "DINO": "dino", "EoMT": "eomt"}
OURS: dict[str, Callable[..., Config]] = {
    f"RoPE ViT, {head}": partial(ours, name=name) for head, name in HEADS.items()
}
PEERS: dict[str, Callable[..., Config]] = {
    "ResNet-18, RetinaNet": partial(resnet, name="retinanet", depth=18),
    "ResNet-18, Mask R-CNN": partial(resnet, name="maskrcnn", depth=18),
    "ResNet-50, Mask R-CNN": partial(resnet, name="maskrcnn", depth=50),
    "torchvision, RetinaNet": partial(peer, library="torchvision", name="retinanet_resnet50_fpn"),
    "torchvision, Mask R-CNN": partial(peer, library="torchvision", name="maskrcnn_resnet50_fpn"),
    "birder, ViTDet": partial(peer, library="birder", name="vitdet"),
}
