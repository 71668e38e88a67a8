"""Masks as run lengths: the pixels of mmdet's BitmapMasks, and less memory."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as rle

from ropevit_mmdet.datasets.run_length_masks import LoadRunLengths, RunLengthMasks
from tests.malformed_coco import HEIGHT, WIDTH, document, settings, write
from tests.test_configs import CONFIGS

OPERATIONS = [
    ("rescale", ((50, 70),)),
    ("resize", ((40, 91),)),
    ("flip", ("horizontal",)),
    ("flip", ("diagonal",)),
    ("pad", ((90, 130),)),
    ("crop", (np.array([5, 7, 61, 80]),)),
    ("expand", (99, 140, 3, 11)),
    ("translate", ((HEIGHT, WIDTH), 13)),
    ("shear", ((HEIGHT, WIDTH), 0.3, "vertical")),
    ("rotate", ((HEIGHT, WIDTH), 27.0)),
]


def both(number):
    pixels = np.random.default_rng(0).integers(0, 2, (number, HEIGHT, WIDTH), dtype=np.uint8)
    codes = [rle.encode(np.asfortranarray(mask)) for mask in pixels]
    return BitmapMasks(pixels, HEIGHT, WIDTH), RunLengthMasks(codes, HEIGHT, WIDTH)


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize(("name", "arguments"), OPERATIONS)
def test_operations_are_those_of_bitmap_masks(name, arguments, number):
    expected, actual = (getattr(one, name)(*arguments) for one in both(number))
    assert isinstance(actual, RunLengthMasks) and len(actual) == number
    assert (actual.height, actual.width) == (expected.height, expected.width)
    np.testing.assert_array_equal(actual.masks, expected.masks)
    assert actual.masks.dtype == expected.masks.dtype


def test_views_of_the_pixels():
    expected, actual = both(4)
    for index in (2, slice(1, 3), np.array([3, 0]), np.array([True, False, True, False])):
        np.testing.assert_array_equal(actual[index].masks, expected[index].masks)
    np.testing.assert_array_equal(actual.areas, expected.areas)
    for dtype in (torch.uint8, torch.bool, torch.float32):
        assert torch.equal(actual.to_tensor(dtype, "cpu"), expected.to_tensor(dtype, "cpu"))
    boxes, inds = np.array([[3.0, 4, 60, 50], [0, 0, 30, 84]]), np.array([3, 1])
    crops = [one.crop_and_resize(boxes, (28, 28), inds).masks for one in (expected, actual)]
    np.testing.assert_array_equal(*crops)
    for masks in ([actual, actual], [actual, expected]):
        np.testing.assert_array_equal(
            RunLengthMasks.cat(masks).masks, BitmapMasks.cat([expected, expected]).masks
        )
    assert len(pickle.dumps(actual)) < expected.masks.nbytes


def test_transforms_that_assign_masks_or_build_them_from_pixels():
    """RandomErasing, CopyPaste and Albu of mmdet."""
    for expected, actual in (both(0), both(2)):
        for one in (expected, actual):
            one.masks[:, 10:40, 5:30] = 0
        np.testing.assert_array_equal(actual.masks, expected.masks)
        for one in (expected, actual):
            one.masks = np.where(np.arange(WIDTH) < 50, 0, one.masks)
        np.testing.assert_array_equal(actual.masks, expected.masks)
        boxes = [HorizontalBoxes.from_instance_masks(one).tensor for one in (expected, actual)]
        np.testing.assert_array_equal(*boxes)
        again = [type(one)(np.array([*one.masks]), HEIGHT, WIDTH) for one in (expected, actual)]
        np.testing.assert_array_equal(again[1].masks, again[0].masks)


def dataset_of(directory, pipeline):
    init_default_scope("mmdet")
    return DATASETS.build(settings(directory, pipeline=pipeline))


@pytest.mark.parametrize("name", ["train_pipeline", "test_pipeline"])
def test_pipelines_give_the_masks_of_mmdet(name, tmp_path):
    content = document()
    code = dict(counts=[900, 4000, 4508], size=[HEIGHT, WIDTH])
    content["annotations"][0].update(iscrowd=1, segmentation=code)
    write(tmp_path, content)
    pipeline = Config.fromfile(CONFIGS / "_base_/datasets/coco_lsj.py")[name]
    dataset = dataset_of(tmp_path, pipeline)
    (step,) = [one for one in dataset.pipeline.transforms if isinstance(one, LoadAnnotations)]
    masks = []
    for cls in (LoadRunLengths, LoadAnnotations):
        step.__class__ = cls
        np.random.seed(0)
        sample = dataset[0]["data_samples"]
        masks.append((sample.gt_instances.masks, sample.ignored_instances.masks))
    assert isinstance(masks[0][0], RunLengthMasks)
    for actual, expected in zip(*masks):
        np.testing.assert_array_equal(actual.masks, expected.masks)


def test_a_pipeline_has_no_copy_of_all_masks(tmp_path):
    content = document(1)
    content["annotations"] *= 20
    for number, one in enumerate(content["annotations"], start=1):
        content["annotations"][number - 1] = dict(one, id=number)
    write(tmp_path, content)
    pipeline = Config.fromfile(CONFIGS / "_base_/datasets/shapes.py").test_pipeline
    dataset = dataset_of(tmp_path, pipeline)
    dataset[0]
    tracemalloc.start()
    dataset[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * HEIGHT * WIDTH
