# As ropevit_mask2former.py, for COCO's panoptic segmentation (published with ResNet-50: 52.0 PQ,
# mmdet).
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/mask2former.py",
    "./_base_/datasets/coco_panoptic.py",
    "./_base_/schedules/mask2former_50e.py",
]
num_things, num_stuff = 80, 53
stuff = dict(num_stuff_classes=num_stuff)
padding = _base_.model.data_preprocessor.batch_augments[0]
model = dict(
    data_preprocessor=dict(pad_seg=True, batch_augments=[dict(padding, pad_seg=True)]),
    panoptic_head=dict(
        loss_cls=dict(class_weight=[1.0] * (num_things + num_stuff) + [0.1]), **stuff
    ),
    panoptic_fusion_head=stuff,
    test_cfg=dict(panoptic_on=True, iou_thr=0.8, filter_low_score=True),
)
train_dataloader = dict(batch_size=2)
