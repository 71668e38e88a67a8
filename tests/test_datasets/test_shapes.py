"""The shapes dataset: valid COCO annotations, variety, and atomic output."""

import contextlib
import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ropevit_mmdet.datasets.shapes import CLASSES, dataset, generate
from ropevit_mmdet.datasets.shapes.scene import draw_scene
from ropevit_mmdet.errors import UserError

SMALL = {"num_train": 9, "num_val": 4, "num_test": 3, "size": 96}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    summary = generate(root, num_train=60, num_val=4, num_test=4, seed=3, workers=2)
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


def test_annotations_are_valid_coco(made, train):
    """Boxes and areas fit masks, which share no pixel."""
    assert [one["name"] for one in train.dataset["categories"]] == list(CLASSES)
    assert [*train.cats] == [1, 2, 3, 4, 5] and len(train.imgs) == 60
    assert [*train.anns] == [*range(1, len(train.dataset["annotations"]) + 1)]
    for image_id, image in train.imgs.items():
        with Image.open(made[0] / "train" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) and opened.mode == "RGB"
        taken = np.zeros((image["height"], image["width"]), int)
        for entry in train.imgToAnns[image_id]:
            mask = train.annToMask(entry).astype(bool)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert entry["bbox"] == box and min(box[2:]) >= 5
            assert entry["area"] == mask.sum() >= 24
            taken += mask
        assert taken.max() <= 1


def test_a_complete_dataset_is_kept(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    first = generate(root, **SMALL)
    before = digests(root)
    assert generate(root, **SMALL) == first
    with pytest.raises(UserError, match="shapes of other parameters"):
        generate(root, **SMALL, seed=5)
    assert digests(root) == before and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_statistics", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(tmp_path / "new", **SMALL, workers=1)
    assert not list(tmp_path.iterdir())


def test_parameters_out_of_range(tmp_path):
    for options, message in (
        ({"num_train": -1}, "train .* 0, not -1"),
        ({"size": 85}, "86, not 85"),
    ):
        with pytest.raises(UserError, match=message):
            generate(tmp_path / "set", **SMALL | options)
    assert not list(tmp_path.iterdir())
