# RetinaNet with a tiny RoPE ViT on the shapes dataset, from scratch, on a CPU.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/retinanet.py",
    "./_base_/models/shapes_parts.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
channels, strides = _base_.channels, _base_.strides

model = dict(
    data_preprocessor=_base_.shapes_preprocessor,
    backbone=_base_.shapes_backbone,
    neck=_base_.shapes_neck,
    bbox_head=dict(
        num_classes=5,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(
            octave_base_scale=2.5, scales_per_octave=2, ratios=[1.0], strides=strides
        ),
    ),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)),
    test_cfg=dict(nms_pre=300, max_per_img=50),
)

val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
