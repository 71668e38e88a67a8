# Deformable DETR on COCO 2017 with RoPE ViT-B/14, 50 epochs. Published (arXiv 2010.04159): the
# head, a tenth of the rate for sampling offsets and reference points, 44.3 box AP with ResNet-50
# (mmdet) at batch 32 and rate 2e-4. Ours: the schedule of ropevit_dino.py.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/deformable_detr.py",
    "./_base_/datasets/coco_lsj_boxes.py",
    "./_base_/schedules/detr_50e.py",
]
slow = dict(lr_mult=0.1)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(sampling_offsets=slow, reference_points=slow))
)
train_dataloader = dict(batch_size=2)
