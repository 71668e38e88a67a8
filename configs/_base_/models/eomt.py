_base_ = "./ropevit_b14.py"
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
        loss_mask=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(
            type="DiceLoss",
            use_sigmoid=True,
            activate=True,
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
    ),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", num_things_classes=num_things, num_stuff_classes=num_stuff
    ),
    train_cfg=dict(
        num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="ClassificationCost", weight=2.0),
                dict(type="CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                dict(type="DiceCost", weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type="MaskPseudoSampler"),
    ),
    test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=100),
)
