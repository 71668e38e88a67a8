# RetinaNet on COCO 2017 with RoPE ViT-B/14: windows of 16 patches, four global blocks, 896 pixels.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/retinanet.py",
    "./_base_/datasets/coco_lsj.py",
    "./_base_/schedules/adamw_100e.py",
]
checkpoint = "birder://rope_vit_reg4_b14_capi-places365"  # or the path of a file
image_size = 896

model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type="BatchFixedSizePad", size=(image_size, image_size))],
    ),
    backbone=dict(
        window_size=16,  # see ropevit_maskrcnn.py
        pos_embed_mode="tile",
        rope_interpolation=image_size,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint),
    ),
)
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
