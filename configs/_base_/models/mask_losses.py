# Losses, sampled points and matching of heads with mask queries, as published with Mask2Former
# (arXiv 2112.01527); EoMT has the same.
mask_losses = dict(
    loss_mask=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0),
    loss_dice=dict(
        type="DiceLoss",
        use_sigmoid=True,
        activate=True,
        naive_dice=True,
        eps=1.0,
        loss_weight=5.0,
    ),
)
mask_train_cfg = dict(
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
)
