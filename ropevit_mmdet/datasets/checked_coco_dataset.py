"""A CocoDataset that checks its files and images."""

from functools import partial
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger

from ropevit_mmdet.datasets.validation.annotations import (
    check_annotations,
    classes_issue,
    read_annotation_file,
)
from ropevit_mmdet.datasets.validation.checks import ERROR, WARNING, raise_issue
from ropevit_mmdet.datasets.validation.config import CocoFiles, is_local, path_issues
from ropevit_mmdet.datasets.validation.image_files import image_issue


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """CocoDataset that reports missing files and invalid annotations, whichever tool builds it.

    Warnings are logged in one line.

    Raises:
        UserError: On loading, as `check_datasets` and for errors of `check_annotations`; on
            access to an image that cannot be decoded or contradicts the size in its annotations.
    """

    def load_data_list(self) -> list[dict]:
        masks = any(getattr(step, "with_mask", False) for step in self.pipeline.transforms)
        img_dir = Path(self.data_prefix.get("img") or "")
        classes = tuple(self.metainfo["classes"])
        files = CocoFiles(Path(self.ann_file), img_dir, masks, self.test_mode, classes)
        if is_local(vars(self), self.ann_file, img_dir):
            raise_issue(next(path_issues(files), None))
        self.COCOAPI = partial(_CheckedCOCO, files=files)
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:  # mmengine's samplers would loop forever
            count, filters = len(self.data_list), dict(self.filter_cfg or {})
            raise_issue(
                f"annotation file {self.ann_file}: {filters} excludes all of {count} images"
            )
        return kept

    def prepare_data(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        if not is_local(vars(self), info["img_path"]):
            return self.pipeline(info)
        path, size = Path(info["img_path"]), (info["height"], info["width"])
        raise_issue(image_issue(path, size))  # reads the header only
        try:
            return self.pipeline(info)
        except Exception:
            raise_issue(image_issue(path, size, decode=True))
            raise


class _CheckedCOCO(COCO):
    """mmdet's reader of annotation files, with a check of the content before it is indexed."""

    def __init__(self, path: str, *, files: CocoFiles) -> None:
        super().__init__()
        self.dataset = read_annotation_file(path, ("images", "categories"))
        issue = classes_issue(self.dataset, files.classes)
        raise_issue(issue and f"the categories of {path} are {issue}")
        masks = bool(files.masks)
        findings = check_annotations(self.dataset, masks=masks, evaluated=files.evaluated)
        errors, warnings = findings.summary(ERROR), findings.summary(WARNING)
        if errors:
            raise_issue(
                f"annotation file {path}: {errors}; `ropevit check-data` lists all findings"
            )
        if warnings:
            MMLogger.get_current_instance().warning(f"annotation file {path}: {warnings}")
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs  # mmdet's names
