# As ropevit_eomt.py, for COCO's panoptic segmentation (published with DINOv2: B 50.6 PQ).
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/eomt.py",
    "./_base_/datasets/coco_panoptic.py",
    "./_base_/schedules/eomt_12e.py",
]
stuff = dict(num_stuff_classes=53)
model = dict(
    data_preprocessor=dict(pad_seg=True),
    panoptic_head=stuff,
    panoptic_fusion_head=stuff,
    test_cfg=dict(panoptic_on=True, iou_thr=0.8, filter_low_score=True),
)
image_size = (640, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = train_pipeline[3].crop_size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(mask_annealing=dict(type="MaskAnnealingHook"))
