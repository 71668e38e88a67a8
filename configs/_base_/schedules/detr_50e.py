_base_ = "./detr_12e.py"
# 50 epochs with a step at 4/5, as detrex's DINO on MAE's ViT-B.
max_iters = 375000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, end=max_iters, milestones=[300000], gamma=0.1)
]
