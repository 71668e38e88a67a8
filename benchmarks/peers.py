"""Benchmarks backbones of other libraries, with the arguments of `ropevit benchmark`.

    python -m benchmarks.peers windows global birder sam eva02 dinov3

The peers come with `pip install -e .[bench]`: segment-anything's ImageEncoderViT (ViTDet's ViT-B
with relative positions, windows of 14, patch 16), birder's own network, timm's EVA-02 and DINOv3.
"""

import argparse
from functools import partial

from torch import nn

from ropevit_cli import benchmark
from ropevit_mmdet.apis.benchmark import Variant
from ropevit_mmdet.errors import one_line_errors


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


PEERS = {
    "birder": Variant(birder, 14),
    "sam": Variant(segment_anything, 16),
    "eva02": Variant(partial(from_timm, name="eva02_base_patch14_224"), 14),
    "dinov3": Variant(partial(from_timm, name="vit_base_patch16_dinov3"), 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    benchmark.add_arguments(parser)
    with one_line_errors():
        benchmark.run(parser.parse_args(), PEERS)


if __name__ == "__main__":
    main()
