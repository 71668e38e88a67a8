# The demo: Mask R-CNN with a tiny RoPE ViT on the shapes dataset, from scratch, on a CPU.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/maskrcnn.py",
    "./_base_/models/shapes_parts.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
channels, strides = _base_.channels, _base_.strides
roi_levels = dict(
    roi_layer=dict(sampling_ratio=1),
    out_channels=channels,
    featmap_strides=strides[:2],
    finest_scale=56,
)

model = dict(
    data_preprocessor=_base_.shapes_preprocessor,
    backbone=_base_.shapes_backbone,
    neck=_base_.shapes_neck,
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        num_convs=1,
        anchor_generator=dict(ratios=[1.0], scales=[2.2, 4.4], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_levels,
        bbox_head=dict(
            _delete_=True,
            type="ConvFCBBoxHead",
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=5,
            norm_cfg=dict(type="LayerNorm2d", eps=1e-6),
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder",
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=roi_levels,
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=32,
            num_classes=5,
            class_agnostic=True,
            loss_mask=dict(loss_weight=2.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(pos_iou_thr=0.6, ignore_iof_thr=0.5)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(assigner=dict(ignore_iof_thr=0.5), sampler=dict(num=48, pos_fraction=0.33)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(score_thr=0.01, max_per_img=50)
    ),
)

default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
