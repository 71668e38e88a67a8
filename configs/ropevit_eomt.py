# EoMT, instances of COCO 2017, with RoPE ViT-B/14: no neck, no decoder. The published recipe
# (arXiv 2503.19108): 640 pixels, 12 epochs at batch 16 (8 GPUs x 2 images), large-scale jitter.
# Published results are DINOv2's: L at 640 pixels has 45.2 mask AP, none for B.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/eomt.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/eomt_12e.py",
]
image_size = (640, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = train_pipeline[3].crop_size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(mask_annealing=dict(type="MaskAnnealingHook"))
