# RetinaNet with a tiny RoPE ViT on the embedded shapes, from scratch, on a CPU.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/retinanet.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
embed_dim = 96
channels = 64

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=28),
    backbone=dict(
        arch=dict(
            _delete_=True,  # a name stands there
            patch_size=7,  # half of 14: from scratch, finer patches learn twice as fast
            num_layers=4,
            num_heads=3,
            hidden_dim=embed_dim,
            mlp_dim=3 * embed_dim,
            num_reg_tokens=4,
        ),
        window_size=16,
        global_attn_indices=(),
    ),
    neck=dict(
        in_channels=embed_dim,
        in_stride=7,
        out_channels=channels,
        scale_factors=(1, 0.5, 0.25),
        num_outs=3,
    ),
    bbox_head=dict(
        num_classes=5,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(
            octave_base_scale=2.5, scales_per_octave=2, ratios=[1.0], strides=[7, 14, 28]
        ),
    ),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)),
    test_cfg=dict(nms_pre=300, max_per_img=50),
)

val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
