# For `ropevit compare`: mmdet's ResNet-18 up to stride 16, from scratch. The comparison builds the
# base config's pyramid on its feature map, resampled to the base config's strides.
model = dict(
    backbone=dict(
        type="ResNet",
        depth=18,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_cfg=dict(type="GN", num_groups=32),  # small batches
        norm_eval=False,
    )
)
