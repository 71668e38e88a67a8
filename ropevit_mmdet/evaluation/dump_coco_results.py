"""Writes predictions as COCO results, the JSON file that evaluation servers and tools read."""

import json
from collections.abc import Sequence
from typing import Any

from mmdet.evaluation import DumpDetResults
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.compat.config import innermost_datasets
from ropevit_mmdet.errors import UserError


class DumpCocoResults(DumpDetResults):
    """A metric that writes one list of detections and computes nothing.

    A detection has `image_id`, `category_id`, `score`, `bbox` [x, y, width, height] in pixels of
    the original image, and a `segmentation` as RLE if the detector predicts masks.
    """

    default_prefix = "dump"

    def __init__(self, out_file: str, dataset: BaseDataset) -> None:
        super().__init__(out_file_path="results.pkl")  # mmengine accepts no other suffix
        self.out_file = out_file
        all_ids = [getattr(one, "cat_ids", None) for one in innermost_datasets(dataset)]
        if not all_ids[0] or any(ids != all_ids[0] for ids in all_ids):
            raise UserError(
                f"--out {out_file} needs a COCO dataset, or several of the same category ids; "
                "FILE.pkl does not"
            )
        self.cat_ids = all_ids[0]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps the detections only."""
        keys = ("img_id", "pred_instances")
        super().process(data_batch, [{key: one[key] for key in keys} for one in data_samples])

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        detections = [one for sample in results for one in self._detections(sample)]
        with atomic_file(self.out_file) as file:
            file.write(json.dumps(detections).encode())
        print_log(f"saved {len(detections)} detections to {self.out_file}", logger="current")
        return {}

    def _detections(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        predicted = sample["pred_instances"]
        boxes, labels = predicted["bboxes"].tolist(), predicted["labels"].tolist()
        detections = [
            {
                "image_id": sample["img_id"],
                "category_id": self.cat_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), label, score in zip(boxes, labels, predicted["scores"].tolist())
        ]
        for detection, mask in zip(detections, predicted.get("masks", ())):
            detection["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        return detections
