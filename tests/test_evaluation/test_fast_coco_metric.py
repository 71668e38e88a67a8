"""FastCocoMetric: the figures of mmdet's CocoMetric."""

import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from ropevit_mmdet import FastCocoMetric
from ropevit_mmdet.evaluation import fast_coco_metric

NUM_CLASSES = 6


def _box(random) -> np.ndarray:
    size = np.exp(random.uniform(np.log(6), np.log(140), 2))
    return np.concatenate((random.uniform(0, 160 - size), size))


def _mask(box, random) -> dict:
    mask = np.zeros((160, 160), np.uint8, order="F")
    x, y, w, h = np.maximum(np.round(box), (0, 0, 1, 1)).astype(int)
    mask[y : y + h, x : x + w] = random.random((160, 160))[y : y + h, x : x + w] < 0.97
    return rle.encode(mask)


def synthetic(directory, metric, metric_class=FastCocoMetric, num_images=40, **options):
    """A metric on random objects with crowds, tied scores and empty images, and detections."""
    random = np.random.default_rng(0)
    images, objects, samples = [], [], []
    for image_id in range(3, 3 * num_images, 3):
        images.append(dict(id=image_id, file_name=f"{image_id}.png", height=160, width=160))
        boxes, masks = np.zeros((0, 4)), []
        labels = random.integers(0, NUM_CLASSES - 1, random.integers(0, 5))  # none of the last
        for label in labels:
            box, crowd = _box(random), int(random.random() < 0.1)
            code = _mask(box, random)
            code["counts"] = code["counts"].decode()
            objects.append(
                dict(id=len(objects) + 1, image_id=image_id, category_id=int(label) * 2 + 1,
                     bbox=box.tolist(), area=float(rle.area(code)), iscrowd=crowd,
                     segmentation=code)
            )  # fmt: skip
            boxes = np.concatenate((boxes, np.tile(box, (3, 1)) + random.normal(0, 2, (3, 4))))
        labels = np.concatenate((np.repeat(labels, 3), [0]))
        boxes = np.concatenate((boxes, [_box(random)]))
        masks = [_mask(box, random) for box in boxes]
        boxes[:, 2:] += boxes[:, :2]
        instances = dict(bboxes=torch.tensor(boxes), labels=torch.tensor(labels), masks=masks)
        instances["scores"] = torch.tensor(random.integers(1, 20, len(boxes)) / 20)
        samples.append(dict(img_id=image_id, ori_shape=(160, 160), pred_instances=instances))
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    content = dict(images=images, annotations=objects)
    content["categories"] = [dict(id=2 * i + 1, name=name) for i, name in enumerate(names)]
    (directory / "annotations.json").write_text(json.dumps(content))
    made = metric_class(ann_file=str(directory / "annotations.json"), metric=metric, **options)
    made.dataset_meta = dict(classes=names)
    return made, samples, names


@pytest.mark.parametrize("metric", ["bbox", "segm", "proposal"])
def test_the_figures_are_those_of_coco_metric(metric, tmp_path):
    figures = []
    for metric_class in (CocoMetric, FastCocoMetric):
        made, samples, _ = synthetic(tmp_path, metric, metric_class, classwise=True)
        made.process({}, samples)
        figures.append(made.compute_metrics(made.results))
    slow, fast = figures
    assert list(slow) == list(fast)
    np.testing.assert_array_equal(list(slow.values()), list(fast.values()))
    assert len(fast) == (6 if metric == "proposal" else 6 + NUM_CLASSES)
    assert 0.02 < next(iter(fast.values())) < 0.98


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_unrounded_precision_and_recall(iou_type, tmp_path):
    made, samples, _ = synthetic(tmp_path, iou_type)
    made.cat_ids = made._coco_api.get_cat_ids()
    made.process({}, samples)
    predictions = [prediction for _, prediction in made.results]
    file = made.results2json(predictions, str(tmp_path / "results"))[iou_type]
    evaluations = []
    for evaluation_class in (COCOeval, fast_coco_metric._Evaluation):
        rows = json.loads((tmp_path / file).read_text())
        ground_truth = made._coco_api
        evaluations.append(evaluation_class(ground_truth, ground_truth.loadRes(rows), iou_type))
        evaluations[-1].evaluate()
        evaluations[-1].accumulate()
        evaluations[-1].summarize()
    slow, fast = evaluations
    for key in ("precision", "recall"):
        np.testing.assert_allclose(slow.eval[key], fast.eval[key], rtol=0, atol=1e-12)
    np.testing.assert_allclose(slow.stats, fast.stats, rtol=0, atol=1e-12)


def test_no_detections_and_nothing_replaced(tmp_path):
    made, samples, _ = synthetic(tmp_path, "bbox")
    empty = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0))
    made.process({}, [one | dict(pred_instances=empty) for one in samples])
    assert made.compute_metrics(made.results) == {}
    assert METRICS.get("FastCocoMetric") is FastCocoMetric
    assert CocoMetric.compute_metrics.__globals__["COCOeval"] is COCOeval
