# ropevit_maskrcnn_12e.py on one GPU with 24 GB: batch size 2, activation checkpointing, gradients
# accumulated over 32 passes to the same 64 images. An iteration is one pass.
# With EMA set default_hooks.ema.interval=32; otherwise it averages after every pass.
_base_ = "./ropevit_maskrcnn_12e.py"
passes = 32
max_iters = 22125 * passes
model = dict(backbone=dict(with_cp=True))
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=max_iters, val_interval=5000 * passes)
optim_wrapper = dict(accumulative_counts=passes)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250 * passes),
    dict(
        type="MultiStepLR",
        by_epoch=False,
        end=max_iters,
        milestones=[19667 * passes, 21306 * passes],
        gamma=0.1,
    ),
]
default_hooks = dict(checkpoint=dict(interval=160 * passes))  # between steps
auto_scale_lr = dict(base_batch_size=2, passes=passes)  # mmengine's batch is of one pass
