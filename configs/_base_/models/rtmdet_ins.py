_base_ = "./rtmdet.py"
# RTMDet-Ins: the masks of dynamic convolutions at stride 7, where the loss compares them
# (published: stride 8, upsampled to 4; mmdet needs whole strides).
box_head = {key: value for key, value in _base_.model.bbox_head.items() if key != "exp_on_reg"}
model = dict(
    data_preprocessor=dict(
        pad_mask=True,
        batch_augments=[dict(type="BatchFixedSizePad", size=(896, 896), pad_mask=True)],
    ),
    bbox_head=dict(
        box_head,
        _delete_=True,
        type="RTMDetInsSepBNHead",
        mask_loss_stride=7,
        loss_mask=dict(type="DiceLoss", loss_weight=2.0, eps=5e-6, reduction="mean"),
    ),
    test_cfg=dict(
        nms_pre=1000,
        score_thr=0.05,
        nms=dict(iou_threshold=0.6),
        max_per_img=100,
        mask_thr_binary=0.5,
    ),
)
