"""Benchmarks next to detectors and backbones of other libraries, as `ropevit benchmark` does.

    python -m benchmarks.peers ropevit_maskrcnn birder::vitdet --sizes 896
    python -m benchmarks.peers windows global birder sam eva02 dinov3

birder's ViTDet has our backbone and pyramid, and boxes only.
The peers come with `pip install -e .[bench]`: segment-anything's ImageEncoderViT (ViTDet's ViT-B
with relative positions, windows of 14, patch 16), birder's own network, timm's EVA-02 and DINOv3.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ropevit_cli import benchmark
from ropevit_mmdet.apis.benchmark.measure import Bench
from ropevit_mmdet.apis.benchmark.models import OBJECTS, Work, corners, updater
from ropevit_mmdet.apis.benchmark.parts import LOSS, PartMeter
from ropevit_mmdet.errors import UserError, one_line_errors
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT

CLASSES = 80  # as COCO's
PATCH = 14
WINDOWS: dict[str, Any] = dict(window_size=16, pos_embed_mode="tile", rope_interpolation=896)


def rope_vit(side: int, **arguments: Any) -> nn.Module:
    return RoPEViT("rope_vit_reg4_b14", **arguments)


def birder(side: int) -> nn.Module:
    import birder.net  # noqa: F401  (registers the networks)
    from birder.model_registry import registry

    net = registry.net_factory("rope_vit_reg4_b14", 0, size=(224, 224))
    net.set_dynamic_size()
    net.forward = net.detection_features
    return net


def segment_anything(side: int) -> nn.Module:
    from segment_anything.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(
        img_size=16 * side,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(2, 5, 8, 11),
    )
    encoder.neck = nn.Identity()  # not part of a backbone
    return encoder


def from_timm(side: int, *, name: str) -> nn.Module:
    import timm

    net = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    net.forward = net.forward_features
    return net


def backbone(bench: Bench, *, build: Callable[[int], nn.Module], patch: int = PATCH) -> Work:
    """A backbone alone; `build` takes the side of the grid, that of `bench.pixels` at patch 14."""
    if bench.pixels % 56:
        raise UserError(f"sizes of backbones are multiples of 56, not {bench.pixels}")
    side = bench.pixels // PATCH
    model = build(side).to(bench.device)
    pixels = side * patch
    images = torch.randn(bench.batch, 3, pixels, pixels, device=bench.device)
    meter = PartMeter()
    function = torch.compile(model) if bench.compiled else model
    forward = meter.wrap("backbone", function)
    backward = meter.wrap("backward", lambda loss: loss.backward())
    return Work(model, lambda: images, forward, lambda x: scalar(forward(x)), backward, meter)


def scalar(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output.float().mean()


def detector(bench: Bench, *, library: str, name: str) -> Work:
    """A detector of torchvision or birder, with AdamW; its images are float32 in 0..1."""
    side, device = bench.pixels, bench.device
    in_list = library == "torchvision"
    if in_list:
        sizes = dict(min_size=side, max_size=side)
        model = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=CLASSES + 1, **sizes
        )
    else:
        import birder.net.detection  # noqa: F401  (registers)
        from birder.model_registry import registry

        name, _, backbone = name.partition("/")
        backbone = backbone or "rope_vit_reg4_b14"
        net = registry.net_factory(backbone, 0, size=(side, side))
        model = registry.detection_net_factory(name, CLASSES, net, size=(side, side))
    model.to(device)
    if bench.detections is not None:
        _fix_detections(model, bench.detections, side)
    boxes = side * corners(OBJECTS)
    masks = torch.ones(OBJECTS, side, side, dtype=torch.uint8)
    target = dict(boxes=boxes, labels=torch.ones(OBJECTS, dtype=torch.long), masks=masks)
    images = torch.rand(bench.batch, 3, side, side)
    meter = PartMeter()
    meter.attach_detector(model, training=bench.training, compiled=bench.compiled)

    def move(data: Tensor) -> Any:
        data = data.to(device)
        return list(data) if in_list else data

    def loss(data: Tensor) -> Tensor:
        targets = [{k: v.to(device) for k, v in target.items()} for _ in data]
        losses = model(move(data), targets)
        return sum((losses if in_list else losses[1]).values())

    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-5))
    update = updater(optimizer, meter)
    return Work(
        model, lambda: images, lambda data: model(move(data)), meter.wrap(LOSS, loss), update, meter
    )


def _fix_detections(model: Any, count: int, side: int) -> None:
    """As for mmdet: boxes, scores and labels of RoI heads, or a dict of them per image."""
    owner = getattr(model, "roi_heads", model)
    decode, boxes = owner.postprocess_detections, side * corners(count)

    def fixed(*args: Any, **kwargs: Any) -> Any:
        results = decode(*args, **kwargs)
        by_image = isinstance(results, list)
        num_images = len(results if by_image else results[0])
        device = (results[0]["boxes"] if by_image else results[0][0]).device
        labels = torch.ones(count, dtype=torch.long, device=device)
        one = (boxes.to(device), torch.linspace(1, 0.5, count, device=device), labels)
        if by_image:
            return [dict(zip(("boxes", "scores", "labels"), one, strict=True))] * num_images
        return tuple([values] * num_images for values in one)

    owner.postprocess_detections = fixed


DETECTORS = (
    "birder::vitdet",
    "torchvision::maskrcnn_resnet50_fpn_v2",
    "torchvision::retinanet_resnet50_fpn_v2",
)
BACKBONES: dict[str, tuple] = {
    "windows": (partial(rope_vit, **WINDOWS), 14),
    "windows-cp": (partial(rope_vit, with_cp=True, **WINDOWS), 14),
    "global": (rope_vit, 14),
    "birder": (birder, 14),
    "sam": (segment_anything, 16),
    "eva02": (partial(from_timm, name="eva02_base_patch14_224"), 14),
    "dinov3": (partial(from_timm, name="vit_base_patch16_dinov3"), 16),
}
PEERS = {
    name: partial(backbone, build=build, patch=patch) for name, (build, patch) in BACKBONES.items()
}
for key in DETECTORS:
    library, _, name = key.partition("::")
    PEERS[key] = partial(detector, library=library, name=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    benchmark.add_arguments(parser)
    with one_line_errors():
        benchmark.run(parser.parse_args(), PEERS)


if __name__ == "__main__":
    main()
