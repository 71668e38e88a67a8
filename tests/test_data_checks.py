"""Data sets that are missing or do not fit, found before a model is built. See also test_tools."""

import json

import pytest
from mmdet.registry import DATASETS

from ropevit_mmdet.data_checks.categories import category_names
from ropevit_mmdet.data_checks.datasets import check_datasets
from ropevit_mmdet.run.config import load_config
from tests.tiny_coco import write_tiny


def test_wrapped_data_sets_are_looked_into(tmp_path):
    config = load_config(write_tiny(tmp_path))
    config.train_dataloader.dataset = {
        "type": "RepeatDataset",
        "times": 2,
        "dataset": {"type": "ConcatDataset", "datasets": [config.train_dataloader.dataset]},
    }
    check_datasets(config)
    config.train_dataloader.dataset.dataset.datasets[0].ann_file = "gone.json"
    with pytest.raises(ValueError, match=r"gone\.json"):
        check_datasets(config)


def test_the_evaluators_own_file_has_the_classes_too(tmp_path):
    config = load_config(write_tiny(tmp_path))
    write_tiny(tmp_path / "other", categories=("light", "dark"))
    config.val_evaluator.ann_file = f"{tmp_path}/other/data/annotations.json"
    check_datasets(config, ("train", "test"))
    with pytest.raises(ValueError, match="^val evaluator: .* have another order"):
        check_datasets(config)


def test_categories_are_read_without_parsing_the_file(tmp_path):
    path = tmp_path / "annotations.json"
    names = [f"Straßenbahn {i}" for i in range(500)]  # more than one chunk, not ASCII
    document = {"images": [{"categories": 3}], "categories": [{"id": 1, "name": n} for n in names]}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    assert category_names(path) == names
    path.write_text(path.read_text(encoding="utf-8")[:-1], encoding="utf-8")
    with pytest.raises(ValueError, match="cut short"):
        category_names(path)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="no list of categories"):
        category_names(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        category_names(path)


def test_the_data_set_itself_says_what_is_missing(tmp_path):
    """For mmdet's own tools, which check nothing before they build."""
    write_tiny(tmp_path, categories=("red", "blue"))
    settings = dict(type="CheckedCocoDataset", data_root=f"{tmp_path}/data", pipeline=[])
    settings |= dict(ann_file="annotations.json", data_prefix=dict(img="pictures/"))
    with pytest.raises(ValueError, match="share no name"):
        DATASETS.build(settings | dict(metainfo=dict(classes=("dark", "light"))))
    assert len(DATASETS.build(settings | dict(metainfo=dict(classes=("red", "blue"))))) == 4
    coco = dict(data_root="data/coco/", ann_file="annotations/instances_train2017.json")
    with pytest.raises(ValueError, match=r"cocodataset\.org/#download"):
        DATASETS.build(settings | coco)
