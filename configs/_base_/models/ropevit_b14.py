# RoPE ViT-B/14 and its pyramid for COCO: windows of 16 patches, 896 pixels. mean and std are
# birder's defaults; if the checkpoint's rgb_stats differ, the run stops with the values to set.
model = dict(
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[132.3705, 135.303, 124.3635],
        std=[59.058, 58.752, 65.994],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=56,  # patch 14 x 2 x 2: the coarsest strides divide it
        batch_augments=[dict(type="BatchFixedSizePad", size=(896, 896), pad_mask=True)],
    ),
    backbone=dict(
        type="RoPEViT",
        arch="rope_vit_reg4_b14",
        pretrain_img_size=224,
        window_size=16,  # the pretraining grid: with a tiled position embedding every window has
        pos_embed_mode="tile",  # the position embedding of pretraining
        rope_interpolation=896,  # global blocks: same angle per patch at every size
        init_cfg=dict(
            type="Pretrained",
            checkpoint="birder://rope_vit_reg4_b14_capi-places365",  # or a path
        ),
    ),
    neck=dict(
        type="SimpleFeaturePyramid",
        in_channels=768,
        out_channels=256,
        in_stride=14,
        scale_factors=(4, 2, 1, 0.5),
        num_outs=5,
    ),
)
