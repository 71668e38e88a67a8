# RTMDet-Ins on COCO 2017, otherwise as ropevit_rtmdet.py; published for RTMDet-Ins-L: 43.7 mask AP.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/rtmdet_ins.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/adamw_100e.py",
]
