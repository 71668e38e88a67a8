# As ropevit_maskrcnn_12e.py, without large-scale jitter: a batch has images with similar aspect
# ratios, and is padded to the largest instead of to a square. Evaluates such batches, too.
_base_ = "./ropevit_maskrcnn_12e.py"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=_base_.image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
similar = dict(type="AspectBatchSampler")
model = dict(data_preprocessor=dict(batch_augments=None))
train_dataloader = dict(batch_sampler=similar, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, batch_sampler=similar)
test_dataloader = val_dataloader
