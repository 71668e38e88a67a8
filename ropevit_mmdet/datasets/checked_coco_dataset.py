"""A CocoDataset that checks its files and images."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger

from ropevit_mmdet.datasets.run_length_masks import LoadRunLengths
from ropevit_mmdet.datasets.validation.annotations import check_annotations, read_annotation_file
from ropevit_mmdet.datasets.validation.checks import WARNING, CocoFiles, Findings, raise_issue
from ropevit_mmdet.datasets.validation.config import (
    content_issues,
    dataset_files,
    image_files,
    is_local,
    missing_issue,
)
from ropevit_mmdet.datasets.validation.image_files import image_issue


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """CocoDataset that reports missing files and invalid annotations, whichever tool builds it.

    Images that are not in `data_prefix.img` are looked for next to the annotation file. Warnings
    are logged in one line. `LoadAnnotations` of the pipeline loads masks as run lengths.

    Raises:
        UserError: On loading, as `check_datasets` and for errors of `check_annotations`; on
            access to an image that cannot be decoded or contradicts the size in its annotations.
    """

    finds_images = True  # outside of `data_prefix.img`, too

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for step in self.pipeline.transforms:
            if type(step) is LoadAnnotations:  # the config has mmdet's name, which its tools know
                step.__class__ = LoadRunLengths

    def load_data_list(self) -> list[dict]:
        files = dataset_files(self)
        raise_issue(missing_issue("annotation file", files.ann_file) if files.local else None)
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
        findings = check_annotations(self.dataset, files, bool(self.dataset.get("annotations")))
        raise_issue(next(content_issues(self.dataset, files, findings), None))
        if files.local:
            self._find_images(files, findings)
        if warnings := findings.summary(WARNING):
            MMLogger.get_current_instance().warning(f"annotation file {path}: {warnings}")
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs  # mmdet's names

    def _find_images(self, files: CocoFiles, findings: Findings) -> None:
        """Replaces the names of images that are not in the image directory by paths."""
        directory, paths = image_files(self.dataset, files, findings)
        if directory != files.img_dir:
            message = f"images of {files.ann_file} are in {directory}, not in {files.img_dir}"
            MMLogger.get_current_instance().info(message)
        for one in self.dataset["images"]:
            path = paths[one["file_name"]]
            if path != files.img_dir / one["file_name"]:
                one["file_name"] = os.path.abspath(path)
