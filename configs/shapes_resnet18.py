# Baseline: mmdet's ResNet-18 with FPN on the shapes dataset, from scratch.
_base_ = "./shapes_maskrcnn.py"
channels = _base_.channels
strides = [4, 8, 16, 32]
levels = dict(featmap_strides=strides[:3], finest_scale=32)
norm_cfg = dict(type="GN", num_groups=32)  # a batch of two is too small for batch norm
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="ResNet", depth=18, norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(
        _delete_=True,
        type="FPN",
        in_channels=[64, 128, 256, 512],
        out_channels=channels,
        norm_cfg=norm_cfg,
        num_outs=len(strides),
    ),
    rpn_head=dict(anchor_generator=dict(scales=[3.2, 4.5], strides=strides)),
    roi_head=dict(bbox_roi_extractor=levels, mask_roi_extractor=levels),
)
