_base_ = "./dino.py"
# DDQ DETR (arXiv 2303.12776): DINO with distinct queries, chosen by non-maximum suppression, and an
# auxiliary loss of 1.5 times as many dense queries.
model = dict(
    type="DDQDETR",
    dense_topk_ratio=1.5,
    bbox_head=dict(type="DDQDETRHead"),
    dqs_cfg=dict(type="nms", iou_threshold=0.8),
)
