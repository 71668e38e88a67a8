"""Exports of annotation tools: images are found, and the printed fix leaves a clean file."""

import json
import re
import shlex
import shutil

import pytest
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger
from PIL import Image

from ropevit_mmdet._images import ids_by_name, image_directory, locate_images
from ropevit_mmdet.datasets import check_datasets
from ropevit_mmdet.datasets.validation.checks import CocoFiles
from ropevit_mmdet.datasets.validation.fixes import fix_annotations
from ropevit_mmdet.datasets.validation.report import report_dataset
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import find_image
from tests.commands import ropevit
from tests.malformed_coco import ANNOTATION_CASES, CLASSES, document, scene, settings, write
from tests.test_configs import CONFIGS

HEADING = dict(id=0, name="shapes", supercategory="none")
# Annotation file and directory of the images of each split; the prefix of the file names.
LAYOUTS = {
    "COCO": ("annotations/instances_{}.json", "{}", ""),
    "COCO by split": ("annotations/{}.json", "images/{}", ""),
    "Roboflow": ("{}/_annotations.coco.json", "{}", ""),
    "CVAT": ("{}/annotations/instances_default.json", "{}/images/default", ""),
    "CVAT, flat": ("{}/annotations/instances_default.json", "{}/images", ""),
    "Label Studio": ("{}/result.json", "{}/images", "images/"),
    "Label Studio on Windows": ("{}/result.json", "{}/images", "images\\"),
    "FiftyOne": ("{}/labels.json", "{}/data", ""),
    "of another machine": ("{}/result.json", "{}/images", "../../media/upload/"),
    "next to the images": ("{}/labels.json", "{}", ""),
}


def export(root, layout, *, splits=("train", "valid", "test"), ids_from=0):
    """Writes a dataset as a tool exports it: a heading, annotations from 0."""
    ann_file, directory, prefix = LAYOUTS[layout]
    for split in splits:
        content = document()
        content["categories"].insert(0, HEADING)
        for number, one in enumerate(content["annotations"], start=ids_from):
            one["id"] = number
        (root / directory.format(split)).mkdir(parents=True)
        for one in content["images"]:
            Image.fromarray(scene()).save(root / directory.format(split) / one["file_name"])
            one["file_name"] = prefix + one["file_name"]
        path = root / ann_file.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return ann_file


def four_lines(root, train_ann, val_ann, classes=CLASSES):
    lines = dict(data_root=f"{root}/", train_ann=train_ann, val_ann=val_ann, classes=classes)
    text = (CONFIGS / "custom_coco.py").read_text().replace('"./rope', f'"{CONFIGS}/rope')
    for name, value in lines.items():
        text = re.sub(rf"^{name} = .*", lambda _: f"{name} = {value!r}", text, flags=re.M)  # noqa: B023
    path = root / "mine.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_four_lines_read_every_layout(layout, tmp_path):
    ann_file = export(tmp_path, layout, ids_from=1)
    config = load_config(four_lines(tmp_path, ann_file.format("train"), ann_file.format("valid")))
    check_datasets(config)
    for split in ("train", "val"):
        dataset = DATASETS.build(config[f"{split}_dataloader"].dataset)
        dataset.pipeline.transforms = dataset.pipeline.transforms[:1]
        assert len(dataset) == 3 and dataset[0]["img"].shape == (84, 112, 3)
        directory = LAYOUTS[layout][1].format("valid" if split == "val" else split)
        assert (tmp_path / directory).resolve() in (tmp_path / dataset[0]["img_path"]).parents
    if layout != "COCO":  # mmdet's own dataset opens data_prefix.img / file_name only
        config.train_dataloader.dataset.type = "CocoDataset"
        with pytest.raises(UserError, match="image directory .* does not exist"):
            check_datasets(config)


@pytest.mark.parametrize("layout", ["COCO", "Label Studio on Windows", "of another machine"])
def test_the_printed_fix_leaves_a_clean_file(layout, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ann_file = export(tmp_path, layout, splits=["valid"]).format("valid")
    assert ropevit("check-data", "--ann-file", ann_file) == 1
    out = capsys.readouterr().out
    assert "annotations with id 0" in out and "image is missing" not in out
    (command,) = re.findall("to fix: ropevit (.*)", out)
    assert ropevit(*shlex.split(command)) == 0
    fixed = shlex.split(command)[-1]
    assert f"{fixed}: heading 'shapes' removed; annotations numbered from 1" in (
        capsys.readouterr().out
    )
    assert ropevit("check-data", "--ann-file", fixed) == 0
    assert "no findings" in capsys.readouterr().out
    content = json.loads((tmp_path / fixed).read_text())
    assert [one["name"] for one in content["categories"]] == list(CLASSES)
    assert [one["id"] for one in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    check_datasets(load_config(four_lines(tmp_path, fixed, fixed)))


def test_the_fix_orders_categories_as_the_config(tmp_path, capsys):
    """A trained classifier keeps its order of classes; the file gets it."""
    write(tmp_path / "images_of", document())
    shutil.copytree(tmp_path / "images_of" / "images", tmp_path / "a")
    shutil.copy(tmp_path / "images_of" / "annotations.json", tmp_path / "instances_a.json")
    path = four_lines(tmp_path, "instances_a.json", "instances_a.json", classes=CLASSES[::-1])
    with pytest.raises(UserError, match="have another order .*--fix OUT.json` orders the file"):
        check_datasets(load_config(path))
    assert ropevit("check-data", path, "--split", "train") == 1
    (command,) = re.findall("to fix: ropevit (.*)", capsys.readouterr().out)
    assert ropevit(*shlex.split(command)) == 0
    content = json.loads((tmp_path / "instances_a_fixed.json").read_text())
    assert {one["id"]: one["name"] for one in content["categories"]} == dict(enumerate(CLASSES, 1))
    options = {f"{split}_dataloader.dataset.ann_file": "instances_a_fixed.json"
               for split in ("train", "val")}  # fmt: skip
    options["val_evaluator.ann_file"] = f"{tmp_path}/instances_a_fixed.json"
    config = load_config(path, options)
    check_datasets(config, ("train", "val"))
    labels = DATASETS.build(config.train_dataloader.dataset).get_data_info(0)["instances"]
    assert [one["bbox_label"] for one in labels] == [3, 2]  # square and triangle, from the end


@pytest.mark.parametrize(
    ("spoil", "change"),
    [
        ("text as image id", "images numbered from 1"),
        ("one other image id", "image_ids of annotations corrected"),
        ("text as id", "annotations numbered from 1"),
        ("duplicate id", "annotations numbered from 1"),
        ("box without size", "1 boxes without width or height removed"),
        ("heading of the name of a class", "heading 'ring' removed"),
        ("backslash", "1 file names corrected"),
        ("valid", None),
    ],
)
def test_what_the_fix_changes(spoil, change, tmp_path, capsys):
    content, valid = document(), document()
    ANNOTATION_CASES[spoil].spoil(content)
    directory = write(tmp_path, content)
    files = CocoFiles(directory / "annotations.json", directory / "images")
    fixed, changes = fix_annotations(files)
    assert changes == ([change] if change else []) and fixed == valid
    out = tmp_path / "elsewhere" / "fixed.json"
    assert ropevit("check-data", "--ann-file", files.ann_file, "--fix", out) == 0
    assert "no findings" in capsys.readouterr().out


def test_the_fix_keeps_categories_that_one_split_lacks(tmp_path):
    content = document()
    content["categories"][0].update(id=0)  # as Label Studio numbers them
    for one in content["annotations"]:
        one["category_id"] = 2
    files = CocoFiles(write(tmp_path, content) / "annotations.json", tmp_path)
    for groups in ({}, {"supercategory": "circle"}):  # or a category of a category's name
        content["categories"][0] |= groups
        content["categories"][1] |= groups
        files.ann_file.write_text(json.dumps(content))
        fixed, changes = fix_annotations(files)
        assert not changes and [one["name"] for one in fixed["categories"]] == list(CLASSES)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sub/a b.png", "sub\\a b.png"),
        ("sub/a b.png", "sub/a%20b.png"),
        ("sub/a b.png", r"C:\data\images\sub\a%20b.png"),
        ("sub/a b.png", "/home/other/sub/a b.png"),
        ("sub/a b.png", "sub%5Ca%20b.png"),
        ("u\u0308.png", "\u00fc.png"),  # as macOS and others write the letter
        ("\u00fc.png", "u\u0308.png"),
        ("a%20b.png", "a%20b.png"),
        ("100%.png", "100%.png"),
    ],
)
def test_file_names_of_other_systems(file, name, tmp_path, monkeypatch):
    """The dataset, the check and results find the same file."""
    content, lines = document(), []
    write(tmp_path, content)
    path = tmp_path / "images" / file
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "images" / "1.png").rename(path)
    content["images"][0]["file_name"] = name
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", lines.append)
    dataset = DATASETS.build(settings(tmp_path))
    assert dataset[0]["img_path"] == str(path) and len(lines) == (file != name)
    assert find_image(path, ids_by_name(content["images"])) == content["images"][0]["id"]
    places = {"file names": [f"{name}: {path}"]} if file != name else {}
    files = CocoFiles(tmp_path / "annotations.json", tmp_path / "images")
    assert report_dataset(files).findings.places == places


def test_a_file_of_two_names_is_none_of_them(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "1.png")
    names = ["/a/1.png", "/b/1.png"]
    assert image_directory(tmp_path / "x.json", tmp_path, names) == tmp_path
    assert not any(path.exists() for path in locate_images(tmp_path, names).values())
    images = [dict(file_name=name, id=i) for i, name in enumerate([*names, "1%20.png", "1 .png"])]
    ids = {str(key): value for key, value in ids_by_name(images).items()}
    assert ids == {"/a/1.png": 0, "a/1.png": 0, "/b/1.png": 1, "b/1.png": 1, "1%20.png": 2,
                   "1 .png": 3}  # fmt: skip


def test_files_of_a_test_server_have_no_annotations(tmp_path, capsys):
    content = document()
    del content["annotations"]
    path = write(tmp_path / "a", content) / "annotations.json"
    assert ropevit("check-data", "--ann-file", path) == 0
    out = capsys.readouterr().out
    assert "3 images, 5 categories" in out and "note     file without annotations" in out
    assert ropevit("check-data", "--ann-file", path, "--fix", tmp_path / "a" / "fixed.json") == 0
    del content["categories"]  # COCO's unlabeled2017
    path.write_text(json.dumps(content))
    assert ropevit("check-data", "--ann-file", path) == 0


def test_a_training_needs_annotations(tmp_path):
    content = document()
    del content["annotations"]
    write(tmp_path / "a", content)
    path = four_lines(tmp_path / "a", "annotations.json", "annotations.json")
    with pytest.raises(UserError, match="nothing to learn: 3 images, 0 usable .* no annotations"):
        check_datasets(load_config(path), ("train",))
    config = load_config(path)
    config.val_evaluator.format_only = True
    check_datasets(config, ("val",))
    parts = [config.train_dataloader.dataset] * 2  # images without objects, next to others
    config.train_dataloader.dataset = dict(type="ConcatDataset", datasets=parts)
    check_datasets(config, ("train",))
