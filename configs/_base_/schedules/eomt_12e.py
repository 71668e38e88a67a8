_base_ = "./adamw_100e.py"
# EoMT's 12 epochs of COCO at batch 16 (arXiv 2503.19108): the head warms up for 500 iterations,
# then the backbone for 1000. Published: batch, rates, decays, schedule. Ours: ViTDet's layer decay
# (block i of n at 0.8 ** (n - i), one power lower), no weight decay on norms and biases.
max_iters = 88692  # 12 x 7391
train_cfg = dict(max_iters=max_iters, val_interval=7391)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay_rate=0.8),
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
)
param_scheduler = [
    dict(
        type="TwoStageWarmupPolyLR",
        by_epoch=False,
        head_warmup=500,
        backbone_warmup=1000,
        power=0.9,
        end=max_iters,
    )
]
auto_scale_lr = dict(enable=False, base_batch_size=16, passes=1)
