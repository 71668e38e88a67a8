# A frozen probe on the embedded shapes: pictures as they are, so that every one goes through the
# backbone once in a run and its map is read from the disk afterwards.
_base_ = "./shapes_compare.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="FrozenBackbone",
        backbone=_base_.model.backbone,
        cache_dir="work_dirs/maps",
        max_gb=2.0,
    )
)
train_pipeline = [step for step in _base_.train_pipeline if step.type != "RandomFlip"]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
