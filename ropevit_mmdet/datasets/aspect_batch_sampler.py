"""AspectBatchSampler: batches of images with similar aspect ratios, which need little padding."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mmdet.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

_PER_OCTAVE = 4  # groups between the aspect ratios 1 and 2: 3:2 and 4:3 share one, 1:1 has its own


@DATA_SAMPLERS.register_module()
class AspectBatchSampler(BatchSampler):
    """Groups the images of a sampler by aspect ratio; takes the arguments of `BatchSampler`.

    mmdet's AspectRatioBatchSampler has two groups, where one square image makes a batch of
    landscape images square. What is left of all groups at the end of an epoch shares batches. The
    last image stays last: with several processes it may be a repetition, which mmengine cuts off
    from the end of the results.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        last: list[int] = []
        for index in self.sampler:
            for previous in last:
                group = groups[self._group(previous)]
                group.append(previous)
                if len(group) == self.batch_size:
                    yield group.copy()
                    group.clear()
            last = [index]
        rest = [index for _, group in sorted(groups.items()) for index in group] + last
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def _group(self, index: int) -> int:
        sampler: Any = self.sampler
        info = sampler.dataset.get_data_info(index)
        return round(_PER_OCTAVE * math.log2(info["width"] / info["height"]))
