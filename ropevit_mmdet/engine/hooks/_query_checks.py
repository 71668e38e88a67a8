"""Checks of heads with queries: their number fits the classes, detections and smallest image."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from mmcv import rescale_size

from ropevit_mmdet.errors import UserError

_SAME_SIZE = ("LoadImageFromFile", "LoadAnnotations", "FilterAnnotations", "RandomFlip")


def check_queries(model: Any, dataset: Any, *, training: bool) -> None:
    """Raises a UserError for what would stop a detector with queries at a step of a run."""
    if issue := next(_issues(model, dataset, training), None):
        raise UserError(issue)


def _issues(model: Any, dataset: Any, training: bool) -> Iterator[str]:
    head: Any = getattr(model, "panoptic_head", None) or getattr(model, "bbox_head", None)
    queries = getattr(head, "num_queries", None) or getattr(model, "num_queries", None)
    if not isinstance(queries, int):
        return
    weights = getattr(head, "class_weight", None)
    if isinstance(weights, Sequence) and len(weights) != head.num_classes + 1:
        yield (
            f"panoptic_head.loss_cls.class_weight has {len(weights)} values: set it to "
            f"[1.0] * {head.num_classes} + [{weights[-1]}], the last one of no object"
        )
    scores = queries * head.num_classes
    for key in ("max_per_img", "max_per_image"):
        if ((model.test_cfg or {}).get(key) or 0) > scores:
            yield f"test_cfg.{key} is above the {scores} scores of {queries} queries: set {scores}"
    needed = int(queries * (getattr(model, "dense_topk_ratio", 1) if training else 1))
    strides = getattr(getattr(model, "neck", None), "strides", ())
    chooses = strides and getattr(model, "as_two_stage", False)
    for size in _input_sizes(model, dataset, training) if chooses else ():
        cells = sum(ceil(size[0] / stride) * ceil(size[1] / stride) for stride in strides)
        if cells < needed:
            yield (
                f"an image of {size[0]} x {size[1]} pixels has {cells} cells in the neck's levels, "
                f"of which {type(model).__name__} chooses {needed}: enlarge the images by the "
                "scale of Resize or pad_size_divisor, or set num_queries lower"
            )


def _input_sizes(model: Any, dataset: Any, training: bool) -> Iterator[tuple[int, int]]:
    """Sizes (height, width) of padded images; none if the pipeline may change them at random."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [None, None])[:-1]
    resizes = [step for step in steps if type(step).__name__ == "Resize" and step.scale]
    others = [s for s in steps if s not in resizes and type(s).__name__ not in _SAME_SIZE]
    if others or (training and model.data_preprocessor.batch_augments):
        return
    divisors = model.data_preprocessor.pad_size_divisor, getattr(model.backbone, "patch_size", 1)
    infos = map(dataset.get_data_info, range(len(dataset)))
    for width, height in {(info["width"], info["height"]) for info in infos}:
        for step in resizes:
            size = rescale_size((width, height), step.scale) if step.keep_ratio else step.scale
            width, height = size
        for divisor in divisors:
            width, height = (ceil(side / divisor) * divisor for side in (width, height))
        yield height, width
