# A frozen probe on the embedded shapes: images as they are, padded to one size whatever they are
# put together with, so that each goes through the backbone once and its map is read from the disk
# ever after: in all but the first validation, in further epochs (400 iterations of 2 images are
# less than one) and in the next runs with the same weights.
_base_ = "./shapes_compare.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="FrozenBackbone",
        backbone=_base_.model.backbone,
        cache_dir="work_dirs/maps",
        max_gb=2.0,
    ),
    data_preprocessor=dict(
        batch_augments=[dict(type="BatchFixedSizePad", size=(224, 224), pad_mask=True)]
    ),
)
train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomFlip"]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
