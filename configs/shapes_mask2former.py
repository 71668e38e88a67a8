# Mask2Former with a tiny RoPE ViT on the shapes dataset, from scratch, on a CPU. Its masks are at
# half the patch size.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/mask2former.py",
    "./_base_/models/shapes_parts.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
channels = _base_.channels
attention = dict(embed_dims=channels, num_heads=4)
ffn = dict(embed_dims=channels, feedforward_channels=4 * channels)
position = dict(num_feats=channels // 2)
classes = dict(num_things_classes=5)
model = dict(
    data_preprocessor=_base_.shapes_preprocessor,
    backbone=_base_.shapes_backbone,
    neck=dict(_base_.shapes_neck, scale_factors=(2, 1, 0.5, 0.25), num_outs=4),
    panoptic_head=dict(
        in_channels=[channels] * 4,
        feat_channels=channels,
        out_channels=channels,
        num_queries=20,
        pixel_decoder=dict(
            encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
            positional_encoding=position,
        ),
        positional_encoding=position,
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        ),
        loss_cls=dict(class_weight=[1.0] * 5 + [0.1]),
        **classes,
    ),
    panoptic_fusion_head=classes,
    train_cfg=dict(num_points=1024),
    test_cfg=dict(max_per_image=50),
)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
