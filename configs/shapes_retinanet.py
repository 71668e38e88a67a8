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
    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=32),
    backbone=dict(
        arch=dict(
            _delete_=True,  # a name stands there
            patch_size=8,  # not 14: a quarter of the shapes is under 26 pixels wide
            num_layers=3,
            num_heads=3,
            hidden_dim=embed_dim,
            mlp_dim=3 * embed_dim,
            num_reg_tokens=4,
        ),
        window_size=7,
        global_attn_indices=(2,),
    ),
    neck=dict(
        in_channels=embed_dim,
        in_stride=8,
        out_channels=channels,
        scale_factors=(2, 1, 0.5),
        num_outs=4,
    ),
    bbox_head=dict(
        num_classes=5,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(
            octave_base_scale=3, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16, 32]
        ),
    ),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)),
    test_cfg=dict(nms_pre=300, max_per_img=50),
)

optim_wrapper = dict(optimizer=dict(lr=1e-3))
val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
