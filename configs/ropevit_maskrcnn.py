# Mask R-CNN on COCO 2017 with RoPE ViT-B/14: windows of 16 patches, four global blocks, 896 pixels,
# ViTDet's 100 epochs at batch 64 (8 GPUs x 8 images, the default of all COCO configs).
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/maskrcnn.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/adamw_100e.py",
]
