# FCOS on COCO 2017 on strides 7 to 112, otherwise as ropevit_maskrcnn.py.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/fcos.py",
    "./_base_/datasets/coco_lsj_boxes.py",
    "./_base_/schedules/adamw_100e.py",
]
