# As custom_coco.py, for boxes and without pretrained weights: RetinaNet with a tiny RoPE ViT, from
# scratch, on a patient CPU (2,000 iterations of 2 images of 320 pixels). Copy this file within its
# directory and set these four lines.
data_root = "data/shapes/"
train_ann = "annotations/instances_train.json"
val_ann = "annotations/instances_val.json"
classes = ("circle", "square", "triangle", "star", "ring")

_base_ = "./shapes_retinanet.py"
import os  # noqa: E402  mmengine parses a file that begins with an import differently

if isinstance(classes, str):
    raise ValueError(f"classes is a string: a tuple of one class has a comma, ({classes!r},)")
size = (320, 320)  # pixels; objects of 15 to 200 pixels then fit the anchors
max_iters = 2000
model = dict(
    neck=dict(num_outs=4),
    bbox_head=dict(
        num_classes=len(classes),
        anchor_generator=dict(ratios=[0.5, 1.0, 2.0], strides=[7, 14, 28, 56]),
        reg_decoded_bbox=True,
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    data_preprocessor=dict(pad_size_divisor=56, pad_mask=False),
    test_cfg=dict(max_per_img=100),
)
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
train_pipeline = [
    *load,
    dict(type="RandomResize", scale=size, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=size, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    load[0],
    dict(type="Resize", scale=size, keep_ratio=True),
    load[1],
    dict(type="PackDetInputs", meta_keys=keys),
]
train_set, val_set = (
    dict(
        data_root=data_root,
        ann_file=ann,
        data_prefix=dict(
            img=ann.rsplit("/", 1)[-1].removeprefix("instances_").removesuffix(".json") + "/"
        ),
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    )
    for ann, pipeline in ((train_ann, train_pipeline), (val_ann, test_pipeline))
)
train_dataloader = dict(dataset=train_set)
val_dataloader = dict(dataset=val_set)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=os.path.join(data_root, val_ann))
test_evaluator = val_evaluator
train_cfg = dict(max_iters=max_iters, val_interval=500)
warmup = max(1, min(100, max_iters // 4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=warmup, end=max_iters, eta_min_ratio=0.01),
]
auto_scale_lr = dict(base_batch_size=2, passes=1)
default_hooks = dict(
    checkpoint=dict(interval=500, save_best="coco/bbox_mAP"),
    ema=dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=5e-3, gamma=200),
)
