# RTMDet-Ins with a tiny RoPE ViT on the shapes dataset, from scratch, on a CPU.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/rtmdet_ins.py",
    "./_base_/models/shapes_parts.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
channels = _base_.channels
model = dict(
    data_preprocessor=_base_.shapes_preprocessor,
    backbone=_base_.shapes_backbone,
    neck=_base_.shapes_neck,
    bbox_head=dict(num_classes=5, in_channels=channels, feat_channels=channels),
    test_cfg=dict(nms_pre=300, score_thr=0.01, max_per_img=50),
)
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))  # the levels share convolutions
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
