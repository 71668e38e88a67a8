"""Evaluators are checked against the datasets that they evaluate, before a run."""

import json

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ropevit_mmdet.datasets import check_datasets, compare_classes
from ropevit_mmdet.errors import UserError
from tests.tiny_coco import CLASSES, write_tiny


@pytest.fixture
def tiny(tmp_path):
    """The config of a tiny dataset, and a function that writes changed annotation files."""
    config = Config.fromfile(write_tiny(tmp_path))
    init_default_scope("mmdet")
    document = json.loads((tmp_path / "data" / "annotations.json").read_text())

    def write(name, change=lambda content: None):
        content = json.loads(json.dumps(document))
        change(content)
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(content))
        return str(tmp_path / "data" / f"{name}.json")

    return config, write


def rename(content):
    content["images"][1]["file_name"] = "other.png"


def resize(content):
    content["images"][2]["width"] += 1


def shorten(content):
    del content["images"][3:]


def renumber(content):
    for one in content["images"]:
        one["id"] += 10
    for one in content["annotations"]:
        one["image_id"] += 10


def concat(*datasets):
    return dict(type="ConcatDataset", datasets=list(datasets))


def repeat(dataset):
    return dict(type="RepeatDataset", times=1, dataset=dataset)


WRAPPED = {
    "metric": lambda metric: metric,
    "list": lambda metric: [dict(type="DumpDetResults", out_file_path="x.pkl"), metric],
    "evaluator": lambda metric: dict(type="Evaluator", metrics=[metric]),
    "one": lambda metric: dict(metrics=metric),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "image 2 is .*2.png .* but other.png"),
        (resize, r"image 3 is .*/3.png \(64 x 56\) .* but 3.png \(65 x 56\)"),
        (shorten, "image 4 is .*/4.png .* but missing in"),
        (renumber, "image 1 is .*/1.png .* but missing in"),
    ],
)
@pytest.mark.parametrize("form", WRAPPED)
def test_evaluator_of_other_images(form, change, message, tiny):
    config, write = tiny
    metric = dict(type="mmdet.CocoMetric", ann_file=write("other", change))
    config.test_evaluator = WRAPPED[form](metric)
    check_datasets(config, ("val",))
    config.test_dataloader.dataset = repeat(concat(config.test_dataloader.dataset))
    with pytest.raises(UserError, match=f"test_evaluator: .*{message}.*: set both to one ann_file"):
        check_datasets(config)


def test_evaluator_of_another_split_with_the_same_names(tiny):
    config, write = tiny

    def move(content):
        for one in content["annotations"]:
            one["bbox"][0] += 2

    config.val_evaluator.ann_file = write("other", move)
    with pytest.raises(UserError, match="other.json has no box of the dataset's"):
        check_datasets(config)


def test_evaluator_with_more_images_than_the_dataset(tiny):
    config, write = tiny
    config.val_dataloader.dataset.ann_file = write("part", shorten)
    with pytest.raises(UserError, match="image 4 is missing in the dataset, but 4.png"):
        check_datasets(config, ("val",))


def test_evaluator_of_the_same_images_in_other_directories(tiny):
    config, write = tiny

    for prefix in ("images/", "images\\", "/of/another/machine/"):

        def add(content, prefix=prefix):
            for image in content["images"]:
                image["file_name"] = f"{prefix}{image['file_name']}"

        config.val_evaluator.ann_file = write("relative", add)
        check_datasets(config)


def test_evaluator_of_several_datasets(tiny):
    config, write = tiny
    last = write("second", lambda content: content["images"].__delitem__(slice(3)))
    files = [write("first", shorten), last]
    parts = [dict(config.val_dataloader.dataset, ann_file=file) for file in files]
    config.val_dataloader.dataset = concat(repeat(parts[0]), parts[1])
    check_datasets(config)
    metrics = [dict(type="CocoMetric", ann_file=file) for file in files]
    separate = dict(type="MultiDatasetsEvaluator", dataset_prefixes=["a", "b"])
    config.val_evaluator = dict(separate, metrics=metrics)
    check_datasets(config)
    config.val_evaluator = dict(separate, metrics=metrics[::-1])
    with pytest.raises(UserError, match="image 1 is .*/1.png .* missing in .*second.json"):
        check_datasets(config)
    config.val_dataloader.dataset = concat(parts[0], parts[0], parts[1])
    config.val_evaluator = config.test_evaluator
    with pytest.raises(UserError, match="image 1 is in .*first.json and another dataset"):
        check_datasets(config)


@pytest.mark.parametrize("selected", [dict(indices=2), dict(test_mode=False, filter_cfg=dict(a=1))])
def test_some_images_of_the_evaluators_file(selected, tiny):
    config, _ = tiny
    config.val_dataloader.dataset.update(selected)
    with pytest.raises(UserError, match="as missed: use type='FastCocoMetric'"):
        check_datasets(config)
    config.val_evaluator.type = "FastCocoMetric"
    check_datasets(config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(iscrowd=1), "all are crowds"),
        (dict(bbox=[0.1, 0.2, 0.5, 0.5]), "all have a box within 0..1"),
        (dict(image_id="1"), "all have image_ids of another type than the ids"),
        (None, "the file has no annotations"),
    ],
)
@pytest.mark.parametrize("same", [False, True])
def test_nothing_to_evaluate(same, changes, reason, tiny):
    config, write = tiny

    def change(content):
        if changes is None:
            content["annotations"].clear()
        for one in content["annotations"]:
            one.update(changes)

    config.val_evaluator.ann_file = write("unusable", change)
    if same:
        config.val_dataloader.dataset.ann_file = "unusable.json"
    with pytest.raises(UserError, match=f"nothing to evaluate: 4 images, 0 .*: {reason}"):
        check_datasets(config)


@pytest.mark.parametrize("metric", ["CocoMetric", "FastCocoMetric"])
def test_classes_of_the_evaluators_file_are_checked(metric, tiny):
    config, write = tiny
    file = write("other", lambda content: content["categories"].reverse())
    config.val_evaluator.update(type=metric, ann_file=file)
    check_datasets(config, ("train", "test"))
    with pytest.raises(UserError, match="^val_evaluator: .* have another order"):
        check_datasets(config)


def test_categories_that_mmdet_sorts_by_id(tiny):
    """Those of Objects365, whose files have them in different orders."""
    config, write = tiny
    config.val_dataloader.dataset.type = "Objects365V2Dataset"
    config.val_evaluator.ann_file = config.val_dataloader.dataset.ann_file = write(
        "other", lambda content: content["categories"].reverse()
    )
    with pytest.raises(UserError, match="^val_evaluator: .* have another order"):
        check_datasets(config, ("val",))
    config.val_evaluator.sort_categories = True
    check_datasets(config, ("val",))


def test_the_dataset_itself_reports_what_is_missing(tiny):
    """For mmdet's own tools, which check nothing before they build."""
    settings = dict(tiny[0].train_dataloader.dataset, type="CheckedCocoDataset", pipeline=[])
    assert len(DATASETS.build(settings)) == 4
    with pytest.raises(UserError, match="lack 'red' of the config's classes and include 'dark'"):
        DATASETS.build(settings | dict(metainfo=dict(classes=("light", "red"))))
    coco = dict(data_root="data/coco/", ann_file="annotations/instances_train2017.json")
    with pytest.raises(UserError, match=r"cocodataset\.org/#download"):
        DATASETS.build(settings | coco)


def test_only_local_files_are_looked_for(tiny):
    config, _ = tiny
    config.train_dataloader.dataset.data_root = "s3://bucket/data"
    check_datasets(config, ("train",))
    config.val_evaluator = dict(type="LVISMetric", ann_file="gone.json")
    with pytest.raises(UserError, match="^val_evaluator: .*gone.json does not exist"):
        check_datasets(config, ("val",))
    config.val_dataloader.dataset = repeat(dict(config.val_dataloader.dataset, ann_file="gone"))
    with pytest.raises(UserError, match="annotation file .*gone does not exist"):
        check_datasets(config, ("val",))


def test_images_of_a_test_server(tiny):
    config, write = tiny
    file = write("server", lambda content: content.pop("annotations"))
    config.test_dataloader.dataset.ann_file = config.test_evaluator.ann_file = file
    config.test_evaluator.format_only = True
    check_datasets(config, ("test",))


def test_classes_of_a_checkpoint(tiny):
    config, _ = tiny
    for key in ("classes", "CLASSES"):
        saved = {"meta": {"dataset_meta": {key: CLASSES}}}
        assert compare_classes(config, "train", saved, "x.pth") == []
    assert compare_classes(config, "train", {}, "x.pth") == []
    config.test_dataloader.dataset = concat(config.test_dataloader.dataset)
    other = {"meta": {"dataset_meta": {"classes": ("red", "blue")}}}
    (warning,) = compare_classes(config, "test", other, "x.pth")
    assert "x.pth was trained on other classes" in warning
    with pytest.raises(UserError, match=r"x.pth .* another order"):
        compare_classes(
            config, "test", {"meta": {"dataset_meta": {"classes": CLASSES[::-1]}}}, "x.pth"
        )
