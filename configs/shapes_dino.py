# DINO with a tiny RoPE ViT on the shapes dataset, from scratch, on a CPU. mmdet's decoder of DINO
# has 256 channels; it and the encoder have fewer layers.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/dino.py",
    "./_base_/models/shapes_parts.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
levels = len(_base_.strides)
sampling = dict(num_levels=levels)
ffn = dict(feedforward_channels=512)
model = dict(
    num_queries=60,
    num_feature_levels=levels,
    data_preprocessor=_base_.shapes_preprocessor,
    backbone=_base_.shapes_backbone,
    neck=dict(_base_.shapes_neck, out_channels=256),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=sampling, ffn_cfg=ffn)),
    decoder=dict(num_layers=3, layer_cfg=dict(cross_attn_cfg=sampling, ffn_cfg=ffn)),
    bbox_head=dict(num_classes=5),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=50),
)

optim_wrapper = dict(optimizer=dict(lr=3e-4))  # at 1e-3 it hardly learns
val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
