_base_ = "./adamw_100e.py"
# Mask2Former's 50 epochs at batch 16, with steps at 8/9 and 26/27 (arXiv 2112.01527), and no weight
# decay on queries and levels. Ours: layer decay in place of a tenth of the rate for the backbone.
max_iters = 368750
embedding = dict(decay_mult=0.0)
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(query_embed=embedding, query_feat=embedding, level_embed=embedding)
    ),
    optimizer=dict(weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
)
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, end=max_iters, milestones=[327778, 355092], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=16)
