"""Parts of the config that `test_block_fsdp_strategy` trains."""

from mmdet.models import FCOSHead
from mmdet.registry import HOOKS, MODELS
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from torch import nn


@MODELS.register_module()
class UnscaledFCOSHead(FCOSHead):
    """FCOS without its factors per level, which are scalars."""

    def _init_layers(self):
        super()._init_layers()
        self.scales = nn.ModuleList(nn.Identity() for _ in self.strides)


@HOOKS.register_module()
class LossFile(Hook):
    """Appends the mean loss of all processes to a file, with all digits."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs["loss"].detach().double()
        all_reduce(loss, "mean")
        if is_main_process():
            with open(f"{runner.work_dir}/losses.txt", "a") as file:
                file.write(f"{loss.item()!r}\n")
