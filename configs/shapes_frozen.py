# A frozen probe on the shapes dataset. Images are not augmented and always padded to one size, so
# that the backbone sees each once: later epochs, validations and runs with the same weights read
# its feature map from the disk.
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
