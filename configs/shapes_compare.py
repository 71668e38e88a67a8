# The protocol of tools/compare_backbones.py on the embedded shapes: fine-tuning, with its curves.
# Half the iterations of shapes_transfer.py: three backbones and two seeds are done in half an hour.
_base_ = "./shapes_transfer.py"
max_iters = 400
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
train_cfg = dict(max_iters=max_iters, val_interval=200)
val_evaluator = dict(metric="bbox")  # of the curves; the tables are of the test
