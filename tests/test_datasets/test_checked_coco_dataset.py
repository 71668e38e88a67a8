"""Datasets that are missing or do not fit their config, reported before a model is built."""

import pytest
from mmdet.registry import DATASETS

from ropevit_mmdet.datasets import check_datasets
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from tests.tiny_coco import write_tiny


def test_datasets_in_wrappers_are_checked(tmp_path):
    config = load_config(write_tiny(tmp_path))
    config.train_dataloader.dataset = {
        "type": "RepeatDataset",
        "times": 2,
        "dataset": {"type": "ConcatDataset", "datasets": [config.train_dataloader.dataset]},
    }
    check_datasets(config)
    config.train_dataloader.dataset.dataset.datasets[0].ann_file = "gone.json"
    with pytest.raises(UserError, match=r"gone\.json"):
        check_datasets(config)


@pytest.mark.parametrize("metric", ["CocoMetric", "FastCocoMetric"])
def test_classes_of_the_evaluators_file_are_checked(tmp_path, metric):
    config = load_config(write_tiny(tmp_path))
    write_tiny(tmp_path / "other", categories=("light", "dark"))
    config.val_evaluator.type = metric
    config.val_evaluator.ann_file = f"{tmp_path}/other/data/annotations.json"
    check_datasets(config, ("train", "test"))
    with pytest.raises(UserError, match="^val_evaluator: .* have another order"):
        check_datasets(config)


def test_the_dataset_itself_reports_what_is_missing(tmp_path):
    """For mmdet's own tools, which check nothing before they build."""
    write_tiny(tmp_path, categories=("red", "blue"))
    settings = dict(type="CheckedCocoDataset", data_root=f"{tmp_path}/data", pipeline=[])
    settings |= dict(ann_file="annotations.json", data_prefix=dict(img="images/"))
    with pytest.raises(UserError, match="share no name"):
        DATASETS.build(settings | dict(metainfo=dict(classes=("dark", "light"))))
    assert len(DATASETS.build(settings | dict(metainfo=dict(classes=("red", "blue"))))) == 4
    coco = dict(data_root="data/coco/", ann_file="annotations/instances_train2017.json")
    with pytest.raises(UserError, match=r"cocodataset\.org/#download"):
        DATASETS.build(settings | coco)


def test_datasets_of_another_backend_are_not_looked_for(tmp_path):
    config = load_config(write_tiny(tmp_path))
    config.train_dataloader.dataset.data_root = "s3://bucket/data"
    check_datasets(config, ("train",))


def test_the_file_of_any_evaluator_is_looked_for(tmp_path):
    config = load_config(write_tiny(tmp_path))
    config.val_evaluator = dict(type="LVISMetric", ann_file=f"{tmp_path}/gone.json")
    with pytest.raises(UserError, match="^val_evaluator: .*gone.json does not exist"):
        check_datasets(config, ("val",))
