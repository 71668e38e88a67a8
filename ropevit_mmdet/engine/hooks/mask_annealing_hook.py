"""MaskAnnealingHook: masked attention of EoMT fades out during training."""

from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ropevit_mmdet.models.dense_heads.eomt_head import EoMTHead

POWER = 0.9


@HOOKS.register_module()
class MaskAnnealingHook(Hook):
    """Sets the probability of masked attention in each of the last blocks before every iteration.

    All published configs of EoMT have this schedule (arXiv 2503.19108, section 3.2): from 1 to 0 by
    a polynomial, in a sixth of the run; the first block begins after a sixth, the last one after
    two thirds. It follows from the iteration: a resumed run has the same.
    """

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for module in model.modules():
            if isinstance(module, EoMTHead):
                probs = probabilities(runner.iter / runner.max_iters, module.num_blocks)
                module.attn_mask_probs.copy_(torch.tensor(probs))


def probabilities(progress: float, num_blocks: int) -> list[float]:
    """Probability of masked attention per block.

    Args:
        progress: part of the training that is done, 0 to 1.
        num_blocks: last blocks of the backbone, which the queries pass.
    """
    begins = [1 / 6 + i / max(1, num_blocks - 1) / 2 for i in range(num_blocks)]
    done = (min(1.0, max(0.0, 6 * (progress - begin))) for begin in begins)
    return [(1 - part) ** POWER for part in done]
