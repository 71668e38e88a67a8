# shapes_transfer.py at 448 pixels, to continue from a detector trained at 224.
_base_ = "./shapes_transfer.py"
side = (448, 448)
max_iters = 150
model = dict(
    backbone=dict(rope_interpolation=448),
    rpn_head=dict(anchor_generator=dict(scales=[4.4, 8.8])),
    roi_head=dict(
        bbox_roi_extractor=dict(finest_scale=112), mask_roi_extractor=dict(finest_scale=112)
    ),
)
train_pipeline = _base_.train_pipeline
train_pipeline.insert(2, dict(type="Resize", scale=side, keep_ratio=True))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = side
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=max_iters, eta_min_ratio=0.01),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
