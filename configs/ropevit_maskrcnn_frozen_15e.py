# A frozen probe: only neck and heads are trained, and every backbone block is windowed. 15 epochs
# of COCO at batch 128 (8 GPUs x 16 images).
_base_ = "./ropevit_maskrcnn.py"
max_iters = 13828
model = dict(
    backbone=dict(
        _delete_=True,
        type="FrozenBackbone",
        backbone=dict(_base_.model.backbone, global_attn_indices=()),
    )
)
train_dataloader = dict(batch_size=16)
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, end=max_iters, milestones=[12292, 13316], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=128)
