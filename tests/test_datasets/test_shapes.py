"""The shapes dataset: valid COCO annotations, variety, and atomic output."""

import contextlib
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ropevit_mmdet.datasets.shapes import CLASSES, generate
from ropevit_mmdet.datasets.shapes.scene import draw_scene
from ropevit_mmdet.errors import UserError

SMALL = {"num_train": 9, "num_val": 4, "num_test": 3, "size": 96}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    summary = generate(root, num_train=240, num_val=20, num_test=20, seed=3, workers=2)
    return root, summary


@pytest.fixture(scope="module")
def train(made):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(made[0] / "annotations" / "instances_train.json")


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_images_are_those_of_generator_version_2():
    """The demo's AP depends on them: other arrays need another GENERATOR_VERSION."""
    scenes = [draw_scene(np.random.default_rng((0, 0, i)), 224, 168) for i in range(12)]
    labels = "".join(str(one.label) for _, objects in scenes for one in objects)
    areas = sum(int(one.mask.sum()) for _, objects in scenes for one in objects)
    assert labels == "202012430332111301402002444244044021411321044" and areas == pytest.approx(
        85012, abs=9
    )
    means = [image.mean() for image, _ in scenes]  # other processors may round otherwise
    assert means == pytest.approx(
        [94.1, 129.3, 124.4, 143.9, 108.5, 146.0, 95.9, 172.0, 110.5, 142.8, 89.7, 75.1], abs=0.2
    )


def test_an_image_depends_only_on_seed_split_and_index(tmp_path):
    options = {"two": dict(workers=2), "other": dict(seed=1), "few": dict(num_train=2, num_test=0)}
    for name, changed in {"one": {}, **options}.items():
        generate(tmp_path / name, **SMALL | dict(workers=1) | changed)
    one, two, other, few = (digests(tmp_path / name) for name in ("one", "two", "other", "few"))
    assert one == two
    images = [name for name in one if name.endswith(".png")]
    assert len({one[p] for p in images} | {other[p] for p in images}) == 32  # none twice
    kept = [name for name in few if name.endswith(".png")]
    assert len(kept) == 6 and all(few[name] == one[name] for name in kept)


def test_annotation_files_are_valid_coco(made):
    for split, count in (("train", 240), ("val", 20), ("test", 20)):
        content = json.loads((made[0] / "annotations" / f"instances_{split}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list(CLASSES)
        assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4, 5]
        image_ids = [image["id"] for image in content["images"]]
        ids = [entry["id"] for entry in content["annotations"]]
        assert len(set(image_ids)) == len(image_ids) == count
        assert len(set(ids)) == len(ids) > count and min(ids) > 0
        assert {entry["image_id"] for entry in content["annotations"]} <= set(image_ids)
        for image in content["images"]:
            with Image.open(made[0] / split / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
                assert opened.mode == "RGB"


def test_boxes_and_areas_fit_masks_that_share_no_pixel(train):
    for image_id, image in train.imgs.items():
        taken = np.zeros((image["height"], image["width"]), int)
        for entry in train.imgToAnns[image_id]:
            mask = train.annToMask(entry).astype(bool)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert entry["bbox"] == box and min(box[2:]) >= 5
            assert entry["area"] == mask.sum() >= 24
            taken += mask
        assert taken.max() <= 1


def test_variety(made, train):
    counts = made[1]["splits"]["train"]
    assert 2 <= counts["empty"] <= 25
    assert 10 <= counts["crowds"] <= 50
    total = sum(counts["objects"].values())
    assert 2.5 <= total / 240 <= 5
    assert min(counts["objects"].values()) > 0.15 * total
    single = [entry for entry in train.dataset["annotations"] if not entry["iscrowd"]]
    assert total == len(single) and counts["crowds"] == len(train.anns) - total
    areas = np.array([entry["area"] for entry in single])
    assert (areas < 32**2).mean() > 0.25 and (areas > 96**2).any()
    tiny = sum(max(entry["bbox"][2:]) <= 20 for entry in single)
    assert 0.05 < tiny / total < 0.25
    sizes = {(image["height"], image["width"]) for image in train.dataset["images"]}
    assert sizes == {(224, 224), (168, 224), (224, 168)}


@pytest.mark.parametrize("quarters", [0, 1])
def test_masks_are_where_shapes_are_rendered(quarters):
    """The color changes most between a mask's last pixel and the next one, on every side."""
    profiles = []
    for index in range(30):
        image, objects = draw_scene(np.random.default_rng(index), 224, 224)
        masks = [np.rot90(one.mask, quarters) for one in objects if not one.is_crowd]
        step = np.abs(np.diff(np.rot90(image, quarters).astype(np.float64), axis=1)).max(axis=2)
        taken = np.any([np.rot90(one.mask, quarters) for one in objects], axis=0)
        for mask in masks:
            rows, columns = np.nonzero(mask[:, :-1] & ~taken[:, 1:])
            inner = (columns > 2) & (columns < 220)
            rows, columns = rows[inner], columns[inner]
            if rows.size >= 10:
                profiles.append([step[rows, columns + shift].mean() for shift in range(-2, 3)])
    inside, edge, outside = np.split(np.mean(profiles, axis=0), (2, 3))
    assert len(profiles) > 50
    assert edge > 1.7 * max(inside.max(), outside.max())


def test_ground_truth_as_predictions_has_an_ap_of_one(train):
    results = []
    for entry in train.dataset["annotations"]:
        if not entry["iscrowd"]:
            rle = train.annToRLE(entry)
            kept = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
            results.append({**kept, "segmentation": rle, "score": 0.9})
    with contextlib.redirect_stdout(io.StringIO()):
        for iou_type in ("bbox", "segm"):
            evaluation = COCOeval(train, train.loadRes(results), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[:6] == pytest.approx(1.0)


def test_a_complete_dataset_is_reused(tmp_path):
    root = tmp_path / "set"
    steps = []
    first = generate(root, **SMALL, progress=lambda: steps.append(1))
    assert len(steps) == 16 and not first["reused"]
    before = digests(root)
    assert generate(root, **SMALL) == first | {"reused": True}

    summary = (root / "shapes.json").read_text()
    (root / "shapes.json").write_text(summary.replace('"images"', '"pictures"'))  # version 0.1
    assert generate(root, **SMALL)["reused"]
    (root / "shapes.json").write_text(summary)
    with pytest.raises(UserError, match=r'other parameters.*"seed": 0.*"seed": 5'):
        generate(root, **SMALL, seed=5)
    assert digests(root) == before
    (root / "val" / "000002.png").unlink()
    with pytest.raises(UserError, match="is incomplete: val has 3 of 4 images"):
        generate(root, **SMALL)
    assert not generate(root, **SMALL, overwrite=True)["reused"]
    assert digests(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_directories_are_never_changed(tmp_path, overwrite):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.png").write_text("keep")
    with pytest.raises(UserError, match="not a shapes dataset"):
        generate(tmp_path, **SMALL, overwrite=overwrite)
    assert (tmp_path / "train" / "mine.png").read_text() == "keep"


def test_a_failure_changes_nothing(tmp_path):
    def stop():
        raise RuntimeError("stopped")

    old = tmp_path / "old"
    generate(old, **SMALL, workers=1)
    before = digests(old)
    for root, options in ((tmp_path / "new", {}), (old, {"overwrite": True})):
        with pytest.raises(RuntimeError, match="stopped"):
            generate(root, **SMALL, **options, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert digests(old) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": -1}, "num_train must be at least 0, not -1"),
        ({"size": 85}, "size must be at least 86, not 85"),
        ({"non_square": 1.5}, "non_square must be at least 0, at most 1, not 1.5"),
        ({"seed": -2}, "seed must be at least 0, not -2"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
    ],
)
def test_parameters_out_of_range(tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        generate(tmp_path / "set", **{**SMALL, **options})
    assert not list(tmp_path.iterdir())
