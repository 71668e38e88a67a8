"""Settings of the data, the optimizer and the schedule."""

import math
from typing import Any

from ropevit_mmdet.apis.adaptation.edits import Edits, walk
from ropevit_mmdet.compat.config import type_name

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "tta_pipeline", "custom_hooks")
# Sizes of images in pixels, in transforms, batch augmentations and the anchors of SSD.
_SIZES = {
    *("scale", "scales", "img_scale", "crop_size", "size", "image_size", "random_size_range"),
    *("border", "width", "height", "input_size"),
}
# Up to a width of channels: layer decay and drop path of ViTDet (arXiv 2203.16527) for B, L and H.
_RECIPES = ((1023, 0.7, 0.1), (1279, 0.8, 0.4), (math.inf, 0.9, 0.5))
_WARMUP = 250  # iterations
_MAX_OWN_LR = 2e-4  # of an Adam: what DETR-type detectors have


def test_side(config: dict[str, Any]) -> int | None:
    """The longer side in pixels of the images in a test, else in training; None if not fixed."""
    for name in ("test_dataloader", "val_dataloader", "train_dataloader"):
        sizes = [
            number
            for _, transform in walk(config.get(name))
            if "Resize" in type_name(transform) or name.startswith("train")
            for key in _SIZES - {"border", "input_size"}
            for number in _numbers(transform.get(key))
        ]
        if sizes:
            return max(sizes)
    return None


def scale_images(edits: Edits, img_size: int) -> None:
    """Scales all sizes of images so that the longer side of a test is `img_size` pixels."""
    factor = img_size / (test_side(edits.config) or img_size)
    for name in (*_LOADERS, "model"):
        for path, settings in walk(edits.config.get(name), (name,)):
            keys = _SIZES & settings.keys() if type_name(settings) else set()
            if name == "model" and "batch_augments" not in path:
                keys &= {"input_size"}
            for key in keys:
                edits.set((*path, key), _scaled(settings[key], factor))


def recipe(hidden_dim: int) -> tuple[float, float]:
    """Layer decay and drop path for a width of channels."""
    return next((decay, drop) for width, decay, drop in _RECIPES if hidden_dim <= width)


def set_optimizer(edits: Edits, layer_decay: float) -> None:
    """AdamW with layer decay; the config's wrapper, gradient clipping and schedule stay."""
    wrapper = dict(edits.config.get("optim_wrapper") or {"type": "OptimWrapper"})
    own = wrapper.get("optimizer") or {}
    batch = (edits.config.get("auto_scale_lr") or {}).get("base_batch_size", 16)
    batch *= wrapper.get("accumulative_counts", 1)
    lr = float(f"{1e-4 * math.sqrt(batch / 64):.2g}")
    adam = "Adam" in type_name(own)
    if adam and own.get("lr", 1) <= _MAX_OWN_LR:
        lr = own["lr"]
    decay = own.get("weight_decay", 0.1) if adam else 0.1
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys", {})
    keys = {key: value for key, value in keys.items() if not key.startswith("backbone")}
    paramwise = dict(layer_decay_rate=layer_decay, **(dict(custom_keys=keys) if keys else {}))
    wrapper.update(
        optimizer=dict(type="AdamW", lr=lr, betas=(0.9, 0.999), weight_decay=decay),
        constructor="RoPEViTLayerDecay",
        paramwise_cfg=paramwise,
    )
    text = f"AdamW with layer decay; lr as ViTDet's 1e-4 at batch size 64, here {batch}"
    edits.set(("optim_wrapper",), wrapper, text if lr != own.get("lr") else "layer decay")
    _set_schedule(edits, own.get("lr", lr))


def _set_schedule(edits: Edits, old_lr: float) -> None:
    """Adds a warm-up where there is none; learning rates become fractions of the base rate."""
    schedulers = edits.config.get("param_scheduler") or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    schedulers = [dict(one) for one in schedulers]
    for one in schedulers:
        if type_name(one) in ("CosineAnnealingLR", "CosineRestartLR") and one.get("eta_min"):
            one["eta_min_ratio"] = round(one.pop("eta_min") / old_lr, 6)
        elif one.get("eta_min") or one.get("eta_max"):
            lr = edits.get("optim_wrapper", "optimizer", "lr")
            for key in {"eta_min", "eta_max"} & one.keys():
                one[key] *= lr / old_lr
    starts = [type_name(one) for one in schedulers if not one.get("begin")]
    warm = any("Warmup" in name or name == "LinearLR" for name in starts)
    if not warm:
        warmup = dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=_WARMUP)
        schedulers.insert(0, warmup)
    comment = "the same schedule" + " after a warm-up" * (not warm)
    edits.set(("param_scheduler",), schedulers, comment)


def _numbers(value: Any) -> list[int]:
    """The sizes in pixels in a value; none in fractions and factors."""
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int) and abs(value) > 16 else []


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(part, factor) for part in value)
    return round(value * factor) if _numbers(value) else value
