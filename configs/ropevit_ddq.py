# DDQ DETR on COCO 2017 with RoPE ViT-B/14, 12 epochs at batch 16 (8 GPUs x 2 images). Published
# (arXiv 2303.12776): the head, 12 epochs, batch; 51.4 box AP with ResNet-50 (mmdet). Ours: the
# recipe of ropevit_dino_12e.py.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/ddq.py",
    "./_base_/datasets/coco_lsj_boxes.py",
    "./_base_/schedules/detr_12e.py",
]
train_dataloader = dict(batch_size=2)
