"""COCO results: ids of the annotation file, boxes as x, y, width, height, masks as RLE."""

import json
from types import SimpleNamespace

import pytest
import torch
from pycocotools import mask as rle

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.dump_coco_results import DumpCocoResults


def test_boxes_and_masks(tmp_path):
    wrapped = SimpleNamespace(dataset=SimpleNamespace(cat_ids=[30, 70]))
    metric = DumpCocoResults(str(tmp_path / "new" / "results.json"), wrapped)
    masks = torch.zeros(2, 12, 20, dtype=torch.bool)
    masks[0, 2:6, 1:11] = True
    predicted = {
        "bboxes": torch.tensor([[1.0, 2, 11, 6], [0, 0, 20, 12]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.75, 0.5]),
        "masks": masks,
    }
    panoptic = {"sem_seg": torch.zeros(1, 12, 20)}
    sample = {"img_id": 5, "pred_instances": predicted, "pred_panoptic_seg": panoptic}
    metric.process({}, [sample])
    assert metric.results[0].keys() == {"img_id", "pred_instances"}
    assert metric.evaluate(1) == {}
    first, second = json.loads((tmp_path / "new" / "results.json").read_text())
    segmentation = first.pop("segmentation")
    assert first == {"image_id": 5, "category_id": 70, "bbox": [1, 2, 10, 4], "score": 0.75}
    assert (rle.decode(segmentation) == masks[0].numpy()).all()
    assert second["category_id"] == 30 and second["bbox"] == [0, 0, 20, 12]


def test_dataset_without_category_ids():
    with pytest.raises(UserError, match="needs a COCO dataset"):
        DumpCocoResults("results.json", SimpleNamespace())
