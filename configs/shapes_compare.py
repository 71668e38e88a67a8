# The base config of `ropevit compare` on the shapes dataset: fine-tuning with half the iterations
# of shapes_transfer.py. Three backbones with two seeds take half an hour on a CPU.
_base_ = "./shapes_transfer.py"
max_iters = 400
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
train_cfg = dict(max_iters=max_iters, val_interval=200)
val_evaluator = dict(metric="bbox")  # for the curves; the tables come from the test
