# As ropevit_maskrcnn.py, for 12 epochs.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/maskrcnn.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/adamw_12e.py",
]
