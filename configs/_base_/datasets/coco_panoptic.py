_base_ = "./coco_lsj.py"
# COCO 2017: 80 thing and 53 stuff classes. mmdet reads and evaluates panoptic segmentation with
# another package: pip install git+https://github.com/cocodataset/panopticapi.git
dataset_type = "CocoPanopticDataset"
data_root = _base_.data_root
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[1] = test_pipeline[2] = dict(type="LoadPanopticAnnotations")
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(seg="annotations/panoptic_train2017/"),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
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
