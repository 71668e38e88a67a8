# The demo: Mask R-CNN with a tiny RoPE ViT on the embedded shapes, from scratch, on a CPU.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/maskrcnn.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
embed_dim = 128
channels = 64

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=28),
    backbone=dict(
        arch=dict(
            _delete_=True,  # a name stands there
            patch_size=14,
            num_layers=4,
            num_heads=2,
            hidden_dim=embed_dim,
            mlp_dim=3 * embed_dim,
            num_reg_tokens=4,
        )
    ),
    # Shapes are 10 to 140 pixels wide: no level of stride 56, one square anchor per place.
    neck=dict(in_channels=embed_dim, out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        num_convs=1,
        anchor_generator=dict(ratios=[1.0], scales=[4.5], strides=[3.5, 7, 14, 28]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1),  # RoIAlign's backward pass is slow on a CPU
            out_channels=channels,
            featmap_strides=[3.5, 7, 14],
            finest_scale=28,
        ),
        bbox_head=dict(
            _delete_=True,
            type="Shared2FCBBoxHead",
            in_channels=channels,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=5,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder",
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1),
            out_channels=channels,
            featmap_strides=[3.5, 7, 14],
            finest_scale=28,
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=5,
            class_agnostic=True,
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
