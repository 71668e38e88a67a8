# RTMDet on COCO 2017 with RoPE ViT-B/14. Published (arXiv 2212.07784): the head, the assignment,
# 51.3 box AP for RTMDet-L. Ours: ViTDet's schedule and jitter as in ropevit_maskrcnn.py, in place
# of 300 epochs of mosaic and mixup.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/rtmdet.py",
    "./_base_/datasets/coco_lsj_boxes.py",
    "./_base_/schedules/adamw_100e.py",
]
