# The COCO recipe on the shapes dataset: patches of 14 pixels, windows of 16 patches, tiled position
# embedding, layer decay. For weights that birder trained; see docs/recipes.md.
_base_ = "./shapes_maskrcnn.py"
embed_dim = 128
max_iters = 800
model = dict(
    data_preprocessor=dict(mean=[132.3705, 135.303, 124.3635], std=[59.058, 58.752, 65.994]),
    backbone=dict(
        arch=dict(
            patch_size=14,
            num_layers=6,
            num_heads=4,
            hidden_dim=embed_dim,
            mlp_dim=3 * embed_dim,
            drop_path_rate=0.0,
            pt_grid_size=(16, 16),  # pretrained on crops of 4 x 4 patches of such a grid
        ),
        pretrain_img_size=56,
        global_attn_indices=None,  # the last of each quarter
        pos_embed_mode="tile",
        rope_interpolation=224,
    ),
    neck=dict(in_channels=embed_dim, in_stride=14, scale_factors=(2, 1, 0.5)),
)
optim_wrapper = dict(
    constructor="RoPEViTLayerDecay", paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
