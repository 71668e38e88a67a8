# Your dataset in COCO's format: copy this file within its directory and set these four lines. As in
# COCO, instances_NAME.json describes the images in <data_root>/NAME/, or next to the file as
# Roboflow, CVAT and Label Studio write them; classes are its categories.
# Example data: `ropevit make-shapes`
data_root = "data/shapes/"
train_ann = "annotations/instances_train.json"
val_ann = "annotations/instances_val.json"
classes = ("circle", "square", "triangle", "star", "ring")

# Without masks use "./ropevit_retinanet.py" or that of fcos, atss, rtmdet, dino, deformable-detr or
# ddq; with masks also that of cascade-maskrcnn, rtmdet-ins, mask2former or eomt.
_base_ = "./ropevit_maskrcnn.py"
import os  # noqa: E402  mmengine parses a file that begins with an import differently

# For some hundred images and one GPU with 24 GB: 5,000 steps of 4 images. With less memory set
# passes to 2 or 4: a step then accumulates the gradients of so many passes.
passes = 1
if passes not in (1, 2, 4):
    raise ValueError(f"passes must be 1, 2 or 4, not {passes}: it divides a step's 4 images")
if isinstance(classes, str):
    raise ValueError(f"classes is a string: a tuple of one class has a comma, ({classes!r},)")
batch_size = 4 // passes
max_iters = 5000 * passes  # an iteration is one pass
num_classes = dict(num_classes=len(classes))
heads = dict(bbox_head=num_classes)
if "roi_head" in _base_.model:
    stages = _base_.model.roi_head.bbox_head  # a list in Cascade R-CNN
    stages = [{**s, **num_classes} for s in stages] if isinstance(stages, list) else num_classes
    heads = dict(roi_head=dict(bbox_head=stages, mask_head=num_classes))
if "panoptic_head" in _base_.model:
    things = dict(num_things_classes=len(classes), num_stuff_classes=0)
    heads = dict(panoptic_head=things, panoptic_fusion_head=things)
    if "class_weight" in _base_.model.panoptic_head.loss_cls:  # of Mask2Former; last: no object
        weights = dict(class_weight=[1.0] * len(classes) + [0.1])
        heads["panoptic_head"] = dict(things, loss_cls=weights)
    if _base_.model.test_cfg.panoptic_on:
        raise ValueError("the base is for panoptic segmentation: take the one without -panoptic")
frozen = "backbone" in _base_.model.backbone  # FrozenBackbone stores no activations
model = dict(backbone={} if frozen else dict(with_cp=True), **heads)
metainfo = dict(classes=classes)
train_prefix, val_prefix = (
    dict(img=ann.rsplit("/", 1)[-1].removeprefix("instances_").removesuffix(".json") + "/")
    for ann in (train_ann, val_ann)
)
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root, ann_file=train_ann, data_prefix=train_prefix, metainfo=metainfo
    ),
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, ann_file=val_ann, data_prefix=val_prefix, metainfo=metainfo)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=os.path.join(data_root, val_ann), classwise=True)
test_evaluator = val_evaluator
train_cfg = dict(max_iters=max_iters, val_interval=500 * passes)
optim_wrapper = dict(
    accumulative_counts=passes,
    optimizer=dict(lr=5e-5),
    clip_grad=_base_.optim_wrapper.get("clip_grad") or dict(max_norm=1.0),
)
warmup = max(1, min(250 * passes, max_iters // 4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=warmup),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=warmup, end=max_iters, eta_min_ratio=0.01),
]
auto_scale_lr = dict(base_batch_size=batch_size, passes=passes)
default_hooks = dict(checkpoint=dict(interval=500 * passes, save_best="coco/bbox_mAP"))
