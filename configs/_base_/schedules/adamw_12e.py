_base_ = "./adamw_100e.py"
# 12 epochs of COCO at batch 64, with steps at 8/9 and 26/27 of it, as in the long schedule.
max_iters = 22125
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, end=max_iters, milestones=[19667, 21306], gamma=0.1),
]
