_base_ = "./adamw_100e.py"
# detrex's 12 epochs of DINO on EVA-02's ViT-B (github.com/IDEA-Research/detrex, projects/dino_eva):
# 90,000 iterations at batch 16, with a step at 11/12, layer decay 0.7.
max_iters = 90000
train_cfg = dict(max_iters=max_iters, val_interval=7500)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, end=max_iters, milestones=[82500], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=16)
