_base_ = "./maskrcnn.py"
# Cascade R-CNN (arXiv 1712.00726) with a mask head: three box heads, each on the boxes of the
# previous one, at IoU .5, .6 and .7. Heads of maskrcnn.py with class-agnostic box regression.
roi_head = _base_.model.roi_head
rcnn = _base_.model.train_cfg.rcnn
stages = [  # IoU threshold, target_stds of the box coder, loss weight
    (0.5, [0.1, 0.1, 0.2, 0.2], 1.0),
    (0.6, [0.05, 0.05, 0.1, 0.1], 0.5),
    (0.7, [0.033, 0.033, 0.067, 0.067], 0.25),
]
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        _delete_=True,
        type="CascadeRoIHead",
        num_stages=len(stages),
        stage_loss_weights=[weight for _, _, weight in stages],
        bbox_roi_extractor=roi_head.bbox_roi_extractor,
        bbox_head=[
            dict(
                roi_head.bbox_head,
                reg_class_agnostic=True,
                bbox_coder=dict(roi_head.bbox_head.bbox_coder, target_stds=stds),
            )
            for _, stds, _ in stages
        ],
        mask_roi_extractor=roi_head.mask_roi_extractor,
        mask_head=roi_head.mask_head,
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                rcnn,
                assigner=dict(
                    rcnn.assigner,
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                ),
            )
            for iou, _, _ in stages
        ]
    ),
)
