"""What a benchmark runs: detectors of configs, or what builds its own work."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ropevit_mmdet.apis.adaptation.check import offline, synthetic_batch
from ropevit_mmdet.apis.benchmark.parts import PartMeter
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.engine.float32_decoding import float32_decoding
from ropevit_mmdet.weights.detector_checkpoint import fitted, read_detector_checkpoint

if TYPE_CHECKING:
    from ropevit_mmdet.apis.benchmark.measure import Bench

OBJECTS = 8  # per image of a training step; COCO's mean is 7.3


class Work(NamedTuple):
    """What a step does: with a batch, `predict`, or else `loss` and then `update`."""

    model: nn.Module
    batch: Callable[[], Any]
    predict: Callable[[Any], Any]
    loss: Callable[[Any], Tensor]
    update: Callable[[Tensor], Any]
    meter: PartMeter


def build(bench: Bench) -> Work:
    """Builds the model of a benchmark on its device, with parts attached."""
    torch.manual_seed(0)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)  # else a line or more per parameter
    try:
        source = bench.source
        return _detector(bench, source) if isinstance(source, str) else source(bench)
    finally:
        logger.setLevel(level)


def corners(count: int) -> Tensor:
    """Boxes [N, 4] of 2 to 50% of the image's sides, as fractions, the same in every call."""
    random = torch.Generator().manual_seed(0)
    sides = 0.02 * 25 ** torch.rand(count, 2, generator=random)
    starts = torch.rand(count, 2, generator=random) * (1 - sides)
    return torch.cat([starts, starts + sides], 1)


def _detector(bench: Bench, source: str) -> Work:
    config = offline(load_config(source, bench.options), bench.pixels)
    model: Any = build_detector(config)
    model.init_weights()
    if bench.checkpoint:
        state = read_detector_checkpoint(bench.checkpoint)["state_dict"]
        model.load_state_dict(fitted(model, state, bench.checkpoint))
    model.to(bench.device)
    float32_decoding(model)
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0, max_iters=1))
    sizes = bench.sizes or [(bench.pixels, bench.pixels)] * bench.batch
    if bench.detections is not None and not bench.data:
        _fix_detections(model, bench.detections, *sizes[0])
    settings = {**config.optim_wrapper, "accumulative_counts": 1}
    optimizer = build_optim_wrapper(model, settings) if bench.training else None
    meter = PartMeter()
    meter.attach_detector(model, training=bench.training, compiled=bench.compiled)

    def loss(data: Any) -> Tensor:
        losses = model._run_forward(model.data_preprocessor(data, True), mode="loss")
        return model.parse_losses(losses)[0]

    if bench.data:
        loader = config.train_dataloader if bench.training else config.test_dataloader
        images = _endless(Runner.build_dataloader({**loader, "batch_size": bench.batch}))
        batch = meter.wrap("data loading", partial(next, images))
    else:
        batch = partial(copy.deepcopy, synthetic_batch(config, sizes, OBJECTS))
    return Work(model, batch, model.test_step, loss, updater(optimizer, meter), meter)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _fix_detections(model: Any, count: int, height: int, width: int) -> None:
    """Decodes as always, then returns `count` detections; queries and masks of queries stay."""
    head = getattr(model, "roi_head", None) or getattr(model, "bbox_head", None)
    name = "predict_bbox" if hasattr(head, "predict_bbox") else "predict_by_feat"
    if not hasattr(head, name) or hasattr(model, "mask_head"):
        return
    decode = getattr(head, name)
    boxes = corners(count) * torch.tensor([width, height] * 2)

    def fixed(*args: Any, **kwargs: Any) -> list[InstanceData]:
        results = decode(*args, **kwargs)
        device = results[0].bboxes.device
        labels = torch.zeros(count, dtype=torch.long, device=device)
        scores = torch.linspace(1, 0.5, count, device=device)
        one = InstanceData(bboxes=boxes.to(device), scores=scores, labels=labels)
        return [one.clone() for _ in results]

    setattr(head, name, fixed)


def updater(optimizer: OptimWrapper | None, meter: PartMeter) -> Callable[[Tensor], Any]:
    """The backward pass and the step of an optimizer, as parts."""
    if optimizer is None:
        return lambda loss: None
    meter.attach(optimizer, "backward", "backward")
    meter.attach(optimizer, "step zero_grad", "optimizer")
    return optimizer.update_params
