"""mmdet's CocoMetric computed by faster-coco-eval."""

from collections.abc import Sequence
from types import FunctionType
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.logging import print_log
from pycocotools import mask as rle


class _Evaluation(COCOeval_faster):
    """COCOeval in C++, which prints its summary as pycocotools does."""

    def __init__(self, ground_truth: Any, detections: Any, iou_type: str) -> None:
        super().__init__(ground_truth, detections, iou_type, print_function=print)

    def _summarize(self, *args: Any, **settings: Any) -> float:
        if args == (1,) and settings.keys() == {"maxDets"} and 100 in self.params.maxDets:
            settings["maxDets"] = 100  # AP alone: of 100 detections of a class in an image
        return super()._summarize(*args, **settings)


_compute_metrics = FunctionType(
    CocoMetric.compute_metrics.__code__,
    CocoMetric.compute_metrics.__globals__ | {"COCOeval": _Evaluation, "COCOevalMP": _Evaluation},
    argdefs=CocoMetric.compute_metrics.__defaults__,
    closure=CocoMetric.compute_metrics.__closure__,
)


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """CocoMetric with the same arguments and figures, in a fraction of the time.

    mmdet's own `compute_metrics` runs with the evaluation of faster-coco-eval
    (https://github.com/MiXaiLL76/faster_coco_eval) in place of pycocotools'. `use_mp_eval` has no
    effect. Three things differ:

    - figures of classes follow those of all: `save_best='auto'` takes the first figure;
    - without any detection all figures are there, 0 where objects were missed;
    - of the images in `ann_file` those that were tested count, as with `indices` of the dataset.
    """

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        self.img_ids = list(dict.fromkeys(prediction["img_id"] for _, prediction in results))
        images = len(self._coco_api.imgs) if self._coco_api else len(self.img_ids)
        if len(self.img_ids) < images:
            print_log(f"evaluating {len(self.img_ids)} of {images} images", "current")
        found = any(len(prediction["scores"]) for _, prediction in results)
        if not found and not self.format_only:
            results = [(results[0][0], _with_no_area(*results[0])), *results[1:]]
        figures = _compute_metrics(self, results)
        return dict(sorted(figures.items(), key=lambda figure: figure[0].endswith("_precision")))


def zero_figures(metrics: Sequence[Any]) -> dict[str, float]:
    """The figures, all 0, that CocoMetrics leave out if there are no detections at all."""
    coco = [one for one in metrics if isinstance(one, CocoMetric) and not one.format_only]
    items = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    names = [
        (one.prefix, f"{name}_{item}")
        for one in coco
        for name in one.metrics
        if name in ("bbox", "segm")
        for item in one.metric_items or items
    ]
    classwise = [
        (one, name) for one in coco if one.classwise for name in one.dataset_meta["classes"]
    ]
    names += [(one.prefix, f"{name}_precision") for one, name in classwise]
    return {"/".join(filter(None, name)): 0.0 for name in names}


def _with_no_area(truth: dict[str, Any], prediction: dict[str, Any]) -> dict[str, Any]:
    """A detection that matches nothing: COCO's evaluation needs one, and gives the same figures."""
    empty = np.zeros((truth["height"], truth["width"]), np.uint8, order="F")
    masks = {"masks": [rle.encode(empty)]} if "masks" in prediction else {}
    box = {"bboxes": np.zeros((1, 4)), "scores": np.zeros(1), "labels": np.zeros(1, int)}
    return {**prediction, **box, **masks}
