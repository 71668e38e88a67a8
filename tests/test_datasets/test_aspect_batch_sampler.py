"""Batches of similar aspect ratios: every image once, little padding, the last image last."""

import numpy as np
import pytest
from mmdet.registry import DATA_SAMPLERS
from mmengine.dataset import DefaultSampler, InfiniteSampler

from ropevit_mmdet import AspectBatchSampler
from ropevit_mmdet.engine.config import load_config

SIZES = [(640, 480), (480, 640), (640, 640), (640, 427)]  # (width, height)


class Images(list):
    def get_data_info(self, index):
        return dict(zip(("width", "height"), self[index], strict=True))


def dataset(count):
    random = np.random.RandomState(0)
    return Images(SIZES[index] for index in random.randint(len(SIZES), size=count))


def batches(data, sampler):
    """As mmengine builds it from a config."""
    settings = load_config("ropevit_maskrcnn_aspect").train_dataloader.batch_sampler
    return DATA_SAMPLERS.build(settings, default_args=dict(sampler=sampler, batch_size=4))


@pytest.mark.parametrize("count", [1, 4, 97, 100])
def test_every_image_is_in_one_batch(count):
    data = dataset(count)
    sampler = batches(data, DefaultSampler(data, shuffle=True))
    found = list(sampler)
    assert sorted(index for batch in found for index in batch) == list(range(count))
    assert len(found) == len(sampler) == -(-count // 4)
    assert all(len(batch) == 4 for batch in found[:-1])
    mixed = [batch for batch in found if len({data[i][0] > data[i][1] for i in batch}) > 1]
    assert len(mixed) <= 3  # of what is left at the end


def test_a_repetition_for_other_processes_stays_last(monkeypatch):
    """mmengine cuts what exceeds the dataset off the end of the results of all processes."""
    data, parts = dataset(97), []
    for rank in range(4):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 4))
        sampler = batches(data, DefaultSampler(data, shuffle=False))
        parts.append([index for batch in sampler for index in batch])
    merged = [index for row in zip(*parts, strict=True) for index in row]
    assert len(merged) == 100 and sorted(merged[:97]) == list(range(97))


def test_endless_batches_are_alike_and_complete():
    data = dataset(50)
    sampler = iter(AspectBatchSampler(InfiniteSampler(data, seed=0), 4, False))
    found = [next(sampler) for _ in range(100)]
    again = iter(AspectBatchSampler(InfiniteSampler(data, seed=0), 4, False))
    assert found == [next(again) for _ in range(100)]
    for batch in found:
        assert len(batch) == 4
        ratios = [data[i][0] / data[i][1] for i in batch]
        assert max(ratios) / min(ratios) < 1.2
    assert {index for batch in found for index in batch} == set(range(50))
