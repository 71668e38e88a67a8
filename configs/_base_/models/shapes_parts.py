# A tiny RoPE ViT and its pyramid, strides 7, 14, 28, for objects of 12 to 140 pixels. It defines
# parts instead of `model`, so that it combines with any detector.
embed_dim = 96
channels = 64
strides = [7, 14, 28]
shapes_preprocessor = dict(
    mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=28, batch_augments=None
)
shapes_backbone = dict(
    arch=dict(
        _delete_=True,  # the base has a name
        patch_size=7,  # from scratch, finer patches train twice as fast as 14
        num_layers=4,
        num_heads=3,
        hidden_dim=embed_dim,
        mlp_dim=3 * embed_dim,
        num_reg_tokens=4,
    ),
    window_size=16,
    global_attn_indices=(),
    pos_embed_mode="interpolate",
    rope_interpolation="pretrain",
    init_cfg=None,  # from scratch
)
shapes_neck = dict(
    in_channels=embed_dim,
    in_stride=7,
    out_channels=channels,
    scale_factors=(1, 0.5, 0.25),
    num_outs=3,
)
