# Cascade Mask R-CNN on COCO 2017, otherwise as ropevit_maskrcnn.py.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/cascade_maskrcnn.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/adamw_100e.py",
]
