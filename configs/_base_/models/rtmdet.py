_base_ = "./dense.py"
# RTMDet-L's head (arXiv 2212.07784) on strides 7, 14 and 28: convolutions shared by the levels,
# norms separate. Ours: layer norm in place of batch norm, no PAFPN.
model = dict(
    type="RTMDet",
    data_preprocessor=dict(pad_size_divisor=56),
    neck=dict(num_outs=3),
    bbox_head=dict(
        type="RTMDetSepBNHead",
        stacked_convs=2,
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[7, 14, 28]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(
            _delete_=True, type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0
        ),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=True,
        share_conv=True,
        pred_kernel_size=1,
        act_cfg=dict(type="SiLU", inplace=True),
    ),
    train_cfg=dict(
        assigner=dict(type="DynamicSoftLabelAssigner", topk=13),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=30000, score_thr=0.001, nms=dict(type="nms", iou_threshold=0.65), max_per_img=300
    ),
)
