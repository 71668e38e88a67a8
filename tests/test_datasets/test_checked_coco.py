"""Datasets that are missing or do not fit, found before a model is built. See also test_tools."""

import json
import shutil

import pytest
from mmdet.registry import DATASETS

from ropevit_mmdet.datasets import checked_coco as datasets
from ropevit_mmdet.datasets.checked_coco import check_datasets
from ropevit_mmdet.engine.config import load_config
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


def test_a_file_is_parsed_once_from_the_check_to_the_data_set(tmp_path, monkeypatch):
    config = load_config(write_tiny(tmp_path))
    config.val_evaluator.ann_file = f"{tmp_path}/data/annotations.json"  # that of all datasets
    read, parsed = datasets.read_annotation_file, []
    monkeypatch.setattr(
        datasets, "read_annotation_file", lambda *args: parsed.append(args) or read(*args)
    )
    check_datasets(config)
    assert len(parsed) == 1 and not datasets._kept  # mmdet's own dataset has no use for it
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.type = "CheckedCocoDataset"
    check_datasets(config)
    assert len(DATASETS.build(config.train_dataloader.dataset)) == 4 and len(parsed) == 2
    assert not datasets._kept
    check_datasets(config, ("train",))
    write_tiny(tmp_path / "2", categories=("others", "than", "before"))
    shutil.copy(tmp_path / "2/data/annotations.json", tmp_path / "data")
    with pytest.raises(ValueError, match="share no name"):
        DATASETS.build(config.train_dataloader.dataset)


@pytest.mark.parametrize("name", ["annotations.json", "annotations.JSON", "annotations.coco"])
def test_classes_are_those_of_the_list_that_a_data_set_has(name, tmp_path):
    """Whatever the file is called, and whichever other lists of that name it holds."""
    config = load_config(write_tiny(tmp_path))
    plain = tmp_path / "data" / "annotations.json"
    content = json.loads(plain.read_text())
    content["images"][0]["categories"] = [{"id": 9, "name": "outdoor"}]
    content = {"info": {"categories": []}, **content}
    plain.unlink()
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.update(type="CheckedCocoDataset", ann_file=name)
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = f"{tmp_path}/data/{name}"
    (tmp_path / "data" / name).write_text(json.dumps(content) + " " * 3000)
    check_datasets(config)
    assert len(DATASETS.build(config.train_dataloader.dataset)) == 4
    content["categories"].reverse()
    (tmp_path / "data" / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="have another order"):
        check_datasets(config)


def test_the_data_set_itself_says_what_is_missing(tmp_path):
    """For mmdet's own tools, which check nothing before they build."""
    write_tiny(tmp_path, categories=("red", "blue"))
    settings = dict(type="CheckedCocoDataset", data_root=f"{tmp_path}/data", pipeline=[])
    settings |= dict(ann_file="annotations.json", data_prefix=dict(img="images/"))
    with pytest.raises(ValueError, match="share no name"):
        DATASETS.build(settings | dict(metainfo=dict(classes=("dark", "light"))))
    assert len(DATASETS.build(settings | dict(metainfo=dict(classes=("red", "blue"))))) == 4
    coco = dict(data_root="data/coco/", ann_file="annotations/instances_train2017.json")
    with pytest.raises(ValueError, match=r"cocodataset\.org/#download"):
        DATASETS.build(settings | coco)
