_base_ = ["./ropevit_b14.py", "./mask_losses.py"]
# EoMT (arXiv 2503.19108) on RoPE ViT-B/14: 200 queries join the last 3 blocks. Published: patches
# resampled to 16 pixels, 640 pixels, global attention, masks at stride 4, 3 blocks for a ViT-B
# (4 for an L, 5 for a g), no drop path; losses, points and matching costs of Mask2Former.
num_things, num_stuff = 80, 0
model = dict(
    type="EoMT",
    data_preprocessor=dict(pad_size_divisor=640, batch_augments=None),  # squares in tests, too
    backbone=dict(
        patch_size=16,
        window_size=None,
        pos_embed_mode="interpolate",
        rope_interpolation=640,
        drop_path_rate=0.0,
    ),
    neck=None,
    panoptic_head=dict(
        type="EoMTHead",
        in_channels=768,
        patch_size=16,
        num_things_classes=num_things,
        num_stuff_classes=num_stuff,
        num_queries=200,
        num_blocks=3,
        no_object_weight=0.1,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=2.0),
        **_base_.mask_losses,
    ),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", num_things_classes=num_things, num_stuff_classes=num_stuff
    ),
    train_cfg=_base_.mask_train_cfg,
    test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=100),
)
