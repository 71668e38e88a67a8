"""The shapes dataset: sound COCO annotations, the promised variety, nothing half-written."""

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

from ropevit_mmdet.datasets.shapes import dataset as shapes
from ropevit_mmdet.datasets.shapes.scene import draw_scene

SMALL = {"num_train": 9, "num_val": 4, "num_test": 3, "size": 96}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    summary = shapes.generate(root, num_train=240, num_val=20, num_test=20, seed=3, workers=2)
    return root, summary


@pytest.fixture(scope="module")
def train(made):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(made[0] / "annotations" / "instances_train.json")


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def masks_of(coco, image_id):
    """Annotations of an image, each with the mask that pycocotools reads from it."""
    entries = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
    return [(entry, coco.annToMask(entry).astype(bool)) for entry in entries]


def test_bytes_depend_on_the_seed_but_not_on_the_workers(tmp_path):
    for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        shapes.generate(tmp_path / name, **SMALL, seed=seed, workers=workers)
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    images = [name for name in one if name.endswith(".png")]
    assert len(images) == 16 and not {one[p] for p in images} & {other[p] for p in images}


def test_more_images_leave_the_first_ones_as_they_were(tmp_path):
    shapes.generate(tmp_path / "few", num_train=2, num_val=1, num_test=0, size=96, workers=1)
    shapes.generate(tmp_path / "many", **SMALL, workers=1)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    for name in ("train/000001.png", "train/000002.png", "val/000001.png"):
        assert few[name] == many[name]


def test_splits_share_no_image(made):
    names = {name: d for name, d in digests(made[0]).items() if name.endswith(".png")}
    assert len(names) == 280 and len(set(names.values())) == 280


def test_annotation_files_are_valid_coco(made):
    for split, count in (("train", 240), ("val", 20), ("test", 20)):
        content = json.loads((made[0] / "annotations" / f"instances_{split}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list(shapes.CLASSES)
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


def test_boxes_and_areas_fit_the_masks_that_pycocotools_reads(train):
    for image_id in train.getImgIds():
        image = train.imgs[image_id]
        for entry, mask in masks_of(train, image_id):
            assert mask.shape == (image["height"], image["width"])
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert entry["bbox"] == box and min(box[2:]) >= 5
            assert entry["area"] == mask.sum() >= 24


def test_masks_share_no_pixel_and_occlusion_is_common(train):
    touching = 0
    for image_id in train.getImgIds():
        masks = [mask for _, mask in masks_of(train, image_id)]
        if not masks:
            continue
        assert np.sum(masks, axis=0).max() == 1
        grown = [np.pad(m, 1)[2:, 1:-1] | np.pad(m, 1)[1:-1, 2:] | m for m in masks]
        touching += np.sum(grown, axis=0).max() > 1
    assert touching > 80


def test_variety(made, train):
    counts = made[1]["splits"]["train"]
    assert 2 <= counts["empty"] <= 25
    assert 10 <= counts["crowds"] <= 50
    total = sum(counts["objects"].values())
    assert 2.5 <= total / 240 <= 5
    assert min(counts["objects"].values()) > 0.15 * total
    assert counts["sizes"]["small"] > 0.25 * total
    assert counts["sizes"]["medium"] > 0.25 * total
    assert counts["sizes"]["large"] > 0
    single = [entry for entry in train.dataset["annotations"] if not entry["iscrowd"]]
    tiny = sum(max(entry["bbox"][2:]) <= 20 for entry in single)
    assert 0.05 < tiny / total < 0.25
    sizes = {(image["height"], image["width"]) for image in train.dataset["images"]}
    assert sizes == {(224, 224), (168, 224), (224, 168)}


def test_summary_counts_what_the_annotations_hold(made, train):
    annotations = train.dataset["annotations"]
    counts = made[1]["splits"]["train"]
    assert counts["images"] == 240
    assert counts["empty"] == 240 - len({entry["image_id"] for entry in annotations})
    assert counts["crowds"] == sum(entry["iscrowd"] for entry in annotations)
    assert sum(counts["objects"].values()) == len(annotations) - counts["crowds"]
    assert sum(counts["sizes"].values()) == sum(counts["objects"].values())


def test_crowds_are_one_region_of_many_shapes(train):
    crowds = [entry for entry in train.dataset["annotations"] if entry["iscrowd"]]
    assert all(entry["area"] > 200 for entry in crowds)
    per_image = [entry["image_id"] for entry in crowds]
    assert len(set(per_image)) == len(per_image)


@pytest.mark.parametrize("turns", range(4))
def test_masks_lie_where_the_shapes_are_painted(turns):
    """On every side the color steps most between a mask's last pixel and its open neighbour."""
    profiles = []
    for index in range(30):
        image, objects = draw_scene(np.random.default_rng(index), 224, 224)
        masks = [np.rot90(thing.mask, turns) for thing in objects if not thing.is_crowd]
        step = np.abs(np.diff(np.rot90(image, turns).astype(np.float64), axis=1)).max(axis=2)
        taken = np.any([np.rot90(thing.mask, turns) for thing in objects], axis=0)
        for mask in masks:
            rows, columns = np.nonzero(mask[:, :-1] & ~taken[:, 1:])
            inner = (columns > 2) & (columns < 220)
            rows, columns = rows[inner], columns[inner]
            if rows.size >= 10:
                profiles.append([step[rows, columns + shift].mean() for shift in range(-2, 3)])
    inside, edge, outside = np.split(np.mean(profiles, axis=0), (2, 3))
    assert len(profiles) > 50
    assert edge > 1.7 * max(inside.max(), outside.max())


def test_ground_truth_as_predictions_scores_one(train):
    results = []
    for entry in train.dataset["annotations"]:
        if not entry["iscrowd"]:
            rle = train.annToRLE(entry)
            kept = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
            results.append({**kept, "segmentation": rle, "score": 0.9})
    with contextlib.redirect_stdout(io.StringIO()):
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(train, train.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[:6] == pytest.approx(1.0)


@pytest.mark.parametrize("fill", ["none", "all", "first", "last", "random"])
def test_run_lengths(fill):
    mask = np.zeros((5, 7), bool)
    if fill == "all":
        mask[:] = True
    elif fill == "random":
        mask = np.random.default_rng(0).random((5, 7)) < 0.5
    elif fill != "none":
        mask[(0, 0) if fill == "first" else (-1, -1)] = True
    code = shapes.encode_mask(mask)
    values = np.arange(len(code["counts"])) % 2 == 1
    decoded = np.repeat(values, code["counts"]).reshape(7, 5).T
    assert code["size"] == [5, 7]
    np.testing.assert_array_equal(decoded, mask)


def test_reuse_and_refusal(tmp_path):
    root = tmp_path / "set"
    steps = []
    first = shapes.generate(root, **SMALL, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 16) for done in range(1, 17)] and not first["reused"]
    before = digests(root)
    assert shapes.generate(root, **SMALL) == first | {"reused": True}

    with pytest.raises(FileExistsError, match=r'other parameters.*"seed": 0.*"seed": 5'):
        shapes.generate(root, **SMALL, seed=5)
    assert digests(root) == before
    (root / "val" / "000002.png").unlink()
    with pytest.raises(FileExistsError, match="not complete: val has 3 of 4 images"):
        shapes.generate(root, **SMALL)
    assert not shapes.generate(root, **SMALL, overwrite=True)["reused"]
    assert digests(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_someone_else_is_never_touched(tmp_path, overwrite):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.png").write_text("keep")
    with pytest.raises(FileExistsError, match="not a shapes dataset"):
        shapes.generate(tmp_path, **SMALL, overwrite=overwrite)
    assert (tmp_path / "train" / "mine.png").read_text() == "keep"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, workers):
    def stop(done, total):
        if done == 5:
            raise RuntimeError("stopped")

    old = tmp_path / "old"
    shapes.generate(old, **SMALL, workers=1)
    before = digests(old)
    for root, options in ((tmp_path / "new", {}), (old, {"overwrite": True})):
        with pytest.raises(RuntimeError, match="stopped"):
            shapes.generate(root, **SMALL, **options, workers=workers, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert digests(old) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": -1}, "num_train must not be negative, got -1"),
        ({"num_test": -7}, "num_test must not be negative, got -7"),
        ({"size": 85}, "size must be at least 86 pixels, got 85"),
        ({"non_square": 1.5}, "non_square is a share between 0 and 1, got 1.5"),
        ({"seed": -2}, "seed must not be negative, got -2"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_bad_parameters(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes.generate(tmp_path / "set", **{**SMALL, **options})
    assert not list(tmp_path.iterdir())


def test_the_smallest_size_works(tmp_path):
    summary = shapes.generate(tmp_path / "set", num_train=8, num_val=0, num_test=0, size=86)
    assert summary["splits"]["train"]["images"] == 8
    assert summary["splits"]["val"]["images"] == 0
