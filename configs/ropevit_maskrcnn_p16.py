# As ropevit_maskrcnn.py, with the patch kernel resampled from 14 to 16 pixels and images of 1024:
# the same 4096 tokens, and a pyramid of powers of two.
_base_ = "./ropevit_maskrcnn.py"
image_size = (1024, 1024)
strides = [4, 8, 16, 32, 64]
roi_levels = dict(featmap_strides=strides[:4], finest_scale=56)
model = dict(
    data_preprocessor=dict(
        pad_size_divisor=64,
        batch_augments=[dict(type="BatchFixedSizePad", size=image_size, pad_mask=True)],
    ),
    backbone=dict(patch_size=16, rope_interpolation=1024),
    neck=dict(in_stride=16),
    rpn_head=dict(anchor_generator=dict(strides=strides)),
    roi_head=dict(bbox_roi_extractor=roi_levels, mask_roi_extractor=roi_levels),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = train_pipeline[3].crop_size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
