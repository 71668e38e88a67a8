# DINO on COCO 2017 with RoPE ViT-B/14, 50 epochs at batch 16 (8 GPUs x 2 images). Published:
# detrex's DINO on plain ViTs, 1024 pixels at patch 16, strides 8 to 64; MAE-B reaches 55.0 box AP
# in 50 epochs. Ours: 896 pixels at patch 14, the same 4096 tokens; layer decay for 50 epochs, too.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/dino.py",
    "./_base_/datasets/coco_lsj_boxes.py",
    "./_base_/schedules/detr_50e.py",
]
train_dataloader = dict(batch_size=2)
