_base_ = "./dense.py"
# FCOS (arXiv 1904.01355) with its later improvements: samples near the centre, distances in units
# of the stride, centerness on the box branch, GIoU loss.
model = dict(
    type="FCOS",
    bbox_head=dict(
        type="FCOSHead",
        strides=[7, 14, 28, 56, 112],
        # 64, 128, 256 and 512 pixels at strides 8 to 128, scaled to 7 to 112
        regress_ranges=((-1, 56), (56, 112), (112, 224), (224, 448), (448, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        centerness_on_reg=True,
        conv_bias=True,
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
