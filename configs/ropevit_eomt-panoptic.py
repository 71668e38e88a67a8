# As ropevit_eomt.py, for COCO's panoptic segmentation: 80 thing and 53 stuff classes (published
# with DINOv2: B 50.6 PQ). mmdet reads and evaluates it with another package:
# pip install git+https://github.com/cocodataset/panopticapi.git
_base_ = "./ropevit_eomt.py"
num_things, num_stuff = 80, 53
data_root = _base_.data_root
model = dict(
    data_preprocessor=dict(pad_seg=True),
    panoptic_head=dict(num_stuff_classes=num_stuff),
    panoptic_fusion_head=dict(num_stuff_classes=num_stuff),
    test_cfg=dict(panoptic_on=True, iou_thr=0.8, filter_low_score=True),
)
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[1] = test_pipeline[2] = dict(type="LoadPanopticAnnotations")
train_dataloader = dict(
    dataset=dict(
        type="CocoPanopticDataset",
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(seg="annotations/panoptic_train2017/"),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type="CocoPanopticDataset",
        ann_file="annotations/panoptic_val2017.json",
        data_prefix=dict(seg="annotations/panoptic_val2017/"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type="CocoPanopticMetric",
    ann_file=data_root + "annotations/panoptic_val2017.json",
    seg_prefix=data_root + "annotations/panoptic_val2017/",
)
test_evaluator = val_evaluator
