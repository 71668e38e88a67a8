_base_ = ["./ropevit_b14.py", "./mask_losses.py"]
# Mask2Former (arXiv 2112.01527): 100 queries, a pixel decoder of 6 and a decoder of 9 layers, as
# published. The pyramid's strides are 3.5, 7, 14 and 28.
num_things, num_stuff = 80, 0
model = dict(
    type="Mask2Former",
    neck=dict(num_outs=4),
    panoptic_head=dict(
        type="Mask2FormerHead",
        in_channels=[256] * 4,
        feat_channels=256,
        out_channels=256,
        num_things_classes=num_things,
        num_stuff_classes=num_stuff,
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=256, num_heads=8, num_levels=3, dropout=0.0),
                    ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.0),
                ),
            ),
            positional_encoding=dict(num_feats=128, normalize=True),
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0),
                cross_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0),
                ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type="CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            class_weight=[1.0] * (num_things + num_stuff) + [0.1],  # the last is no object
        ),
        **_base_.mask_losses,
    ),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", num_things_classes=num_things, num_stuff_classes=num_stuff
    ),
    train_cfg=_base_.mask_train_cfg,
    test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=100),
)
