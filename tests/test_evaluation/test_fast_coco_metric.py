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
from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.precision_recall import precision_recall
from ropevit_mmdet.evaluation.result_file import Detections

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
    np.testing.assert_equal(fast, slow)
    classes = [name.endswith("_precision") for name in fast]
    assert classes == sorted(classes)  # figures of all classes first
    assert len(fast) == (6 if metric == "proposal" else 6 + NUM_CLASSES)
    assert 0.02 < next(iter(fast.values())) < 0.98


def test_ap_is_of_100_detections_of_a_class_in_an_image(tmp_path):
    """As in pycocotools; all other figures are of 1,000."""
    boxes = np.array([[10 * (i % 16), 10 * (i // 16), 8, 8] for i in range(120)])
    fields = dict(image_id=1, category_id=1, area=64, iscrowd=0)
    objects = [dict(fields, id=i, bbox=box) for i, box in enumerate(boxes.tolist(), start=1)]
    images = [dict(id=1, file_name="1.png", height=160, width=160)]
    content = dict(images=images, annotations=objects, categories=[dict(id=1, name="cell")])
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    labels, scores, figures = np.zeros(120, int), np.linspace(0.9, 0.1, 120), []
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    found = dict(bboxes=corners, labels=labels, scores=scores)
    found = {key: torch.tensor(value) for key, value in found.items()}
    for metric_class in (CocoMetric, FastCocoMetric):
        metric = metric_class(ann_file=str(tmp_path / "annotations.json"), metric="bbox")
        metric.dataset_meta = dict(classes=("cell",))
        metric.process({}, [dict(img_id=1, ori_shape=(160, 160), pred_instances=found)])
        figures.append(metric.compute_metrics(metric.results))
    assert figures[0] == figures[1] and figures[0]["bbox_mAP"] < 0.9 < figures[0]["bbox_mAP_50"]
    truth = Annotations(metric._coco_api, ("cell",))
    curves = precision_recall({1: Detections(boxes, labels, scores)}, truth)
    assert curves.means()[:4] == pytest.approx([*figures[0].values()][:4], abs=6e-4)


@pytest.mark.parametrize("metric", [["bbox", "segm"], ["segm"], ["proposal"]])
def test_without_detections_all_figures_are_there(metric, tmp_path):
    made, samples, _ = synthetic(tmp_path, metric, classwise=True)
    made.process({}, samples)
    usual = made.compute_metrics(made.results)
    made.results.clear()
    empty = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0))
    made.process({}, [one | dict(pred_instances=empty | dict(masks=[])) for one in samples])
    figures = made.compute_metrics(made.results)
    assert list(figures) == list(usual)
    none = [name for name, value in figures.items() if np.isnan(value)]  # a class without objects
    assert none == ([] if metric == ["proposal"] else [f"class {NUM_CLASSES - 1}_precision"])
    assert not any(value for name, value in figures.items() if name not in none)
    made.format_only, made.outfile_prefix = True, str(tmp_path / "submission")
    made.compute_metrics(made.results)
    assert json.loads((tmp_path / "submission.bbox.json").read_text()) == []


def test_images_that_are_not_tested_do_not_count(tmp_path):
    """As if the file had only the others."""
    made, samples, _ = synthetic(tmp_path, "bbox")
    made.process({}, samples[:7])
    part = made.compute_metrics(made.results)
    document = json.loads((tmp_path / "annotations.json").read_text())
    ids = [one["img_id"] for one in samples[:7]]
    document["images"] = [one for one in document["images"] if one["id"] in ids]
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in ids]
    (tmp_path / "part.json").write_text(json.dumps(document))
    other = CocoMetric(ann_file=str(tmp_path / "part.json"), metric="bbox")
    other.dataset_meta = made.dataset_meta
    assert part == other.compute_metrics(made.results) != {}


def test_mmdets_metric_is_unchanged():
    assert METRICS.get("FastCocoMetric") is FastCocoMetric
    assert CocoMetric.compute_metrics.__globals__["COCOeval"] is COCOeval
