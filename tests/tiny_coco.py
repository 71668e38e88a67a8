"""For the tests of tools: a few images in COCO's format and a detector that is quick on them."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("dark", "light")
CONFIG = """
custom_imports = dict(imports=['ropevit_mmdet'], allow_failed_imports=False)
default_scope = 'mmdet'
root = {root!r}
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                          'scale_factor')),
]
dataset = dict(type='CocoDataset', data_root=root, ann_file='annotations.json',
               data_prefix=dict(img='images/'), metainfo=dict(classes={classes!r}),
               pipeline=pipeline)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dataset,
                        sampler=dict(type='InfiniteSampler', shuffle=False))
val_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(test_mode=True, **dataset),
                      sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=root + '/annotations.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
                     visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3,
                           bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(2, 3)),
    neck=dict(type='FPN', in_channels=[32, 64], out_channels=16, num_outs=2),
    bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=16, feat_channels=16,
                   stacked_convs=1,
                   anchor_generator=dict(type='AnchorGenerator', octave_base_scale=2,
                                         scales_per_octave=1, ratios=[1.0], strides=[16, 32])),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4,
                                 min_pos_iou=0), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0,
                  nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
)
"""


def write_tiny(
    directory: Path, *, categories=CLASSES, classes=CLASSES, num_images: int = 4
) -> Path:
    """Write `<directory>/data` and `<directory>/tiny.py`; returns the config's path."""
    root = directory / "data"
    (root / "images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, num_images + 1):
        height, width = 48 + 8 * (number % 2), 64
        image = random.integers(100, 156, (height, width, 3), dtype=np.uint8)
        label = number % 2
        image[10:30, 20:44] = 20 + 200 * label
        name = f"{number}.png"
        Image.fromarray(image).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.append(
            {"id": number, "image_id": number, "category_id": label + 1, "iscrowd": 0,
             "bbox": [20, 10, 24, 20], "area": 480,
             "segmentation": [[20, 10, 44, 10, 44, 30, 20, 30]]}
        )  # fmt: skip
    document = {
        "info": {"categories": "a word that is also a key"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
    }
    (root / "annotations.json").write_text(json.dumps(document))
    config = directory / "tiny.py"
    config.write_text(CONFIG.format(root=str(root), classes=classes))
    return config


def write_python_style(config: Path, path: Path) -> Path:
    """Writes a config at `path` with imported classes in place of the names of types."""
    from mmdet import registry
    from mmengine.registry import Registry

    text, imports = config.read_text(), ["from mmcv.ops.nms import nms"]
    text = re.sub(r"custom_imports = .*", "", text)
    of_mmdet = {key: one for key, one in vars(registry).items() if not key.startswith("MMENGINE")}
    registries = [one for one in of_mmdet.values() if isinstance(one, Registry)]
    for name in sorted(set(re.findall(r"type='(\w+)'", text)) - {"nms"}):
        cls = next(found for one in registries if (found := one.get(name)))
        imports.append(f"from {cls.__module__} import {cls.__name__} as {name}")
    text = re.sub(r"type='(\w+)'", r"type=\1", text)
    path.write_text("\n".join(imports) + "\n" + text)
    return path
