"""The arms of a comparison of recipes: each changes one setting of the first one."""

from collections.abc import Callable
from functools import partial

from mmengine.config import Config, ConfigDict

from benchmarks import light
from benchmarks.photos.datasets import Photos, jitter, use_photos
from ropevit_mmdet.engine.config import load_config

LSJ = (0.1, 2.0)
EVERY = ("horizontal", "vertical", "diagonal")


def base(config: Config, photos: Photos) -> None:
    """Large-scale jitter, as in `configs/custom_coco.py`."""
    use_photos(config, photos, jitter(photos.size, *LSJ))


def mild(config: Config, photos: Photos) -> None:
    use_photos(config, photos, jitter(photos.size, 0.8, 1.25))


def color(config: Config, photos: Photos) -> None:
    steps = [dict(type="PhotoMetricDistortion"), *jitter(photos.size, *LSJ)]
    use_photos(config, photos, steps)


def mixed(config: Config, photos: Photos) -> None:
    """CopyPaste of masks, on images of one size; of boxes a mosaic of four images."""
    base(config, photos)
    dataset, square = config.train_dataloader.dataset, (photos.size, photos.size)
    *steps, pack = dataset.pipeline
    if photos.has_masks:
        dataset.pipeline, mixing = [*steps, dict(type="Pad", size=square)], [dict(type="CopyPaste")]
    else:
        mosaic = dict(type="Mosaic", img_scale=square)
        dataset.pipeline, mixing = steps[:2], [mosaic, *jitter(photos.size, 0.5, 1.0)]
    config.train_dataloader.dataset = ConfigDict(
        type="MultiImageMixDataset", dataset=dataset, pipeline=[*mixing, pack]
    )


def average(config: Config, photos: Photos) -> None:
    base(config, photos)
    use_average(config)


def use_average(config: Config) -> None:
    """Tests the moving average of the weights over some 200 iterations."""
    ema = dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=5e-3, gamma=200)
    config.custom_hooks = [*config.get("custom_hooks", []), ema]


def frozen(config: Config, photos: Photos) -> None:
    base(config, photos)
    config.model.backbone.frozen_stages = config.model.backbone.arch.num_layers // 2


def undecayed(config: Config, photos: Photos) -> None:
    base(config, photos)
    config.optim_wrapper.paramwise_cfg.layer_decay_rate = 1.0


def half_lr(config: Config, photos: Photos) -> None:
    base(config, photos)
    config.optim_wrapper.optimizer.lr /= 2


def giou(config: Config, photos: Photos) -> None:
    """From scratch: boxes learn by GIoU, photos are mirrored every way, weights averaged."""
    use_average(config)
    use_photos(config, photos, jitter(photos.size, 0.8, 1.25, EVERY))
    loss = ConfigDict(type="GIoULoss", loss_weight=2.0)
    config.model.bbox_head.update(reg_decoded_bbox=True, loss_bbox=loss)


def rtmdet(config: Config, photos: Photos) -> None:
    """From scratch: RTMDet's head, which learns from the detections that fit best."""
    use_average(config)
    use_photos(config, photos, jitter(photos.size, 0.8, 1.25, EVERY))
    head = load_config("configs/ropevit_rtmdet.py").model
    channels = config.model.neck.out_channels
    head.bbox_head.update(
        num_classes=len(photos.classes), in_channels=channels, feat_channels=channels
    )
    for key in ("type", "bbox_head", "train_cfg", "test_cfg"):
        config.model[key] = head[key]  # update() would merge them
    config.optim_wrapper.paramwise_cfg.bypass_duplicate = True  # levels share convolutions


def fewer_operations(config: Config, photos: Photos, name: str) -> None:
    """A row of `benchmarks.light`, with the anchors of the photos."""
    mild(config, photos)
    smallest, largest = config.model.rpn_head.anchor_generator.scales
    size = (photos.square, photos.square)
    pad = dict(type="BatchFixedSizePad", size=size, pad_mask=photos.has_masks)
    settings = light.PUBLISHED | {"model.data_preprocessor.batch_augments": [pad]}
    settings |= light.VARIANTS[name][0]
    kept = {k: v for k, v in settings.items() if photos.has_masks or ".mask_" not in k}
    config.merge_from_dict(kept)
    generator = config.model.rpn_head.anchor_generator
    if len(generator.strides) == 2:
        generator.scales = [smallest / 2, smallest, largest]


def on_gpu(config: Config, photos: Photos, lr: float) -> None:
    base(config, photos)
    config.train_dataloader.update(num_workers=4, persistent_workers=True)
    config.optim_wrapper.optimizer.lr = lr


RATES = {f"RoPE ViT-B, learning rate {lr:g}": partial(on_gpu, lr=lr) for lr in (1e-4, 5e-5)}
ARMS: dict[str, dict[str, Callable[[Config, Photos], None]]] = {
    "designs": {"RetinaNet, GIoU": giou, "RTMDet": rtmdet},
    "light": {
        name: partial(fewer_operations, name=name)
        for name in ("published", "batches of similar aspects", "light")
    },
    "recipes": {
        "large-scale jitter, 0.1 to 2": base,
        "jitter of 0.8 to 1.25": mild,
        "color": color,
        "CopyPaste or mosaic": mixed,
        "EMA": average,
        "first half of the blocks frozen": frozen,
        "no layer decay": undecayed,
        "half the learning rate": half_lr,
    },
}
