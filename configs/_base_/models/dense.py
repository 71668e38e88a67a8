_base_ = "./ropevit_b14.py"
# Shared by one-stage detectors: strides 7 to 112 of the patch-14 pyramid, no masks.
model = dict(
    data_preprocessor=dict(
        pad_size_divisor=112,
        pad_mask=False,
        batch_augments=[dict(type="BatchFixedSizePad", size=(896, 896))],
    ),
    neck=dict(scale_factors=(2, 1, 0.5), num_outs=5, add_extra_convs="on_output"),
    bbox_head=dict(
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        norm_cfg=dict(type="LayerNorm2d", eps=1e-6),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=100,
    ),
)
