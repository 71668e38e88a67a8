# As ropevit_maskrcnn.py with 70% of its operations at 896 pixels: no pyramid level of stride 3.5,
# one RPN convolution, two in the box head, and 300 proposals in tests. With half the global blocks,
# model.backbone.global_attn_indices=(5,11), 64%. `python -m benchmarks.light` measures the choices.
_base_ = "./ropevit_maskrcnn.py"
strides = [7, 14, 28, 56]
roi_levels = dict(featmap_strides=strides[:3], finest_scale=98)  # RoIs below 196 pixels: stride 7
model = dict(
    neck=dict(scale_factors=(2, 1, 0.5), num_outs=4),
    rpn_head=dict(  # anchors from 28 pixels, as those of stride 3.5
        num_convs=1, anchor_generator=dict(scales=[4, 8], strides=strides)
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_levels,
        bbox_head=dict(type="ConvFCBBoxHead", num_shared_convs=2, num_shared_fcs=1),
        mask_roi_extractor=roi_levels,
    ),
    test_cfg=dict(rpn=dict(max_per_img=300)),
)
