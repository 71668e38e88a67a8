"""What a config's schedule takes on this machine, from training steps that were measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ropevit_mmdet.apis.adaptation.rules import test_side
from ropevit_mmdet.compat.config import type_name, walk
from ropevit_mmdet.errors import UserError

_MARGIN = 0.95  # of the free memory


def schedule(config: Config, images: int | None = None) -> tuple[int, int]:
    """Optimizer steps of a config, and images per step over all GPUs and passes.

    The batch is that of `auto_scale_lr`, else that of one GPU; `images` are those of an epoch, by
    default of the dataset. Raises UserError if the config has no schedule.
    """
    loop, scaling = config.get("train_cfg") or {}, config.get("auto_scale_lr") or {}
    loader = config.get("train_dataloader") or {}
    sampler = loader.get("batch_sampler") or {}
    batch = loader.get("batch_size") or sampler.get("batch_size")
    batch = scaling.get("base_batch_size") or batch
    passes = (config.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    passes = scaling.get("passes", passes)
    iterations, epochs = loop.get("max_iters"), loop.get("max_epochs")
    if not batch or not (iterations or epochs):
        raise UserError("the config has no train_cfg with max_iters or max_epochs, or no batch")
    if not iterations:
        init_default_scope(config.get("default_scope") or "mmdet")
        try:
            images = images or len(DATASETS.build(loader["dataset"]))
        except OSError as error:
            text = f"the images of an epoch cannot be counted ({error})"
            raise UserError(f"{text}: pass --images to `ropevit plan`") from error
        iterations = epochs * math.ceil(images / batch)
    return iterations // passes, batch * passes


def training_side(config: Config) -> int:
    """The side in pixels of a square with as many pixels as the images that a config trains on.

    Batches that are padded to a fixed size have that size; images scaled into a rectangle have an
    aspect of 4:3, as most of COCO.
    """
    for path, settings in walk(config.model):
        if "batch_augments" in path and type_name(settings) == "BatchFixedSizePad":
            return max(settings["size"])
    steps = [step for _, step in walk(config.get("train_dataloader"))]
    scales = [one.get("scale") for one in steps if "Resize" in type_name(one)]
    scale = next((s for s in scales if isinstance(s, (tuple, list))), None)
    if scale and isinstance(scale[0], int) and scale[0] != scale[1]:
        width = min(max(scale), min(scale) * 4 / 3)
        return round(width * math.sqrt(3 / 4))
    side = test_side(config.to_dict())
    if side is None:
        raise UserError("the config fixes no size of its images: pass --size PIXELS")
    return side


def training_dtype(config: Config) -> str:
    """The dtype of the mixed precision that a config trains in, else float32."""
    wrapper = config.get("optim_wrapper") or {}
    given = str(wrapper.get("dtype") or "float16").removeprefix("torch.")
    return given if type_name(wrapper) == "AmpOptimWrapper" else "float32"


def plan(
    steps: int, images: int, rows: Sequence[Mapping[str, Any]], free_bytes: int, *, gpus: int = 1
) -> dict[str, Any]:
    """Computes hours, memory, batch size and passes of a schedule.

    Memory and time are linear in the batch size, by training `rows` of `measure`. The batch size is
    the largest that divides the images of a GPU in a step and fits into its free bytes.
    """
    share, weights = images // gpus, rows[0]["weight_bytes"]
    memory = _line(rows, [row["peak_bytes"] for row in rows])
    fits = max(0, int((_MARGIN * free_bytes - weights - memory[0]) / max(memory[1], 1)))
    batch = max((n for n in range(1, share + 1) if share % n == 0 and n <= fits), default=0)
    result: dict[str, Any] = dict(steps=steps, images_per_step=images, gpus=gpus)
    result |= dict(weight_bytes=weights, step_bytes=memory[0], image_bytes=memory[1])
    result |= dict(free_bytes=free_bytes, largest_batch=fits, batch=batch)
    if not batch:
        return result
    optimizer = float(
        np.median([r["parts"].get("optimizer", {"median": 0.0})["median"] for r in rows])
    )
    seconds = _line(rows, [row["median"] - optimizer for row in rows])
    passes = share // batch
    iteration = seconds[0] + seconds[1] * batch + optimizer / passes
    return result | dict(
        passes=passes,
        iterations=steps * passes,
        seconds_per_iteration=iteration,
        hours=steps * passes * iteration / 3600,
        peak_bytes=weights + memory[0] + memory[1] * batch,
    )


def text(name: str, result: Mapping[str, Any]) -> str:
    """Formats a plan."""
    gb = {key: f"{value / 1e9:.2f} GB" for key, value in result.items() if key.endswith("bytes")}
    gpus = f" on {result['gpus']} GPUs" * (result["gpus"] > 1)
    lines = [
        f"{name}: {result['steps']:,} optimizer steps of {result['images_per_step']} images{gpus}",
        f"  memory: {gb['weight_bytes']} of weights, {gb['step_bytes']} + {gb['image_bytes']} per "
        f"image; {gb['free_bytes']} are free",
    ]
    batch, passes = result["batch"], result.get("passes")
    if not batch:
        hint = "with_cp=True in the backbone, or a smaller size, needs less"
        return "\n".join([*lines, f"  not a single image fits: {hint}"])
    lines += [
        f"  batch: {batch} per pass (up to {result['largest_batch']} fit), {passes} passes; "
        f"peak {gb['peak_bytes']}",
        f"  time: {result['iterations']:,} iterations x {result['seconds_per_iteration']:.3g} s"
        f" = {result['hours']:,.3g} hours, without validation",
        f"  settings: train_dataloader.batch_size={batch} "
        f"optim_wrapper.accumulative_counts={passes}; an iteration is one pass",
    ]
    return "\n".join(lines)


def _line(rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> tuple[float, float]:
    """Least squares: value without an image and value per image, neither negative."""
    if len(rows) == 1:  # two images do not fit: all that one takes counts for it
        return 0.0, values[0] / rows[0]["batch"]
    batches = np.array([row["batch"] for row in rows], float)
    slope, start = (float(value) for value in np.polyfit(batches, values, 1))
    if slope < 0:
        return float(np.mean(values)), 0.0
    return (start, slope) if start >= 0 else (0.0, float(batches @ values / (batches @ batches)))
