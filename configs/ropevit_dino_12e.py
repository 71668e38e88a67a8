# As ropevit_dino.py, for 12 epochs: the recipe of detrex's DINO on EVA-02-B, published with 55.8
# box AP (MAE-B: 50.2).
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/dino.py",
    "./_base_/datasets/coco_lsj_boxes.py",
    "./_base_/schedules/detr_12e.py",
]
train_dataloader = dict(batch_size=2)
