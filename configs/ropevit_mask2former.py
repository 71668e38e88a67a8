# Mask2Former, instances of COCO 2017, with RoPE ViT-B/14. Published (arXiv 2112.01527): the head,
# 50 epochs at batch 16 (8 GPUs x 2 images), large-scale jitter at 1024 pixels; 42.9 mask AP with
# ResNet-50 (mmdet). Ours: 896 pixels at patch 14, layer decay; none is published with a plain ViT.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/mask2former.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/mask2former_50e.py",
]
train_dataloader = dict(batch_size=2)
