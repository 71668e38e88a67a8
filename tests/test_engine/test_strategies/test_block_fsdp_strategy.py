"""Two processes over gloo, by torchrun, end with the weights of one on the same global batches."""

import pytest
import torch
from mmcv.cnn import Scale
from mmengine.config import Config, ConfigDict

from ropevit_mmdet.engine.strategies import block_fsdp_strategy as distributed
from ropevit_mmdet.engine.strategies.block_fsdp_strategy import (
    BlockFSDPStrategy,
    launched,
    use_launcher,
)
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny

# FCOS divides its losses by what all processes count together: how a batch is shared out does not
# change them. Its factors per level, which FSDP cannot spread, are left out. SGD: AdamW makes whole
# steps out of the rounding of gradients that are zero.
CONFIG = """
_base_ = './tiny.py'
custom_imports = dict(imports=['ropevit_mmdet', 'parts'], allow_failed_imports=False)
model = dict(
    type='FCOS',
    backbone=dict(_delete_=True, type='RoPEViT', pretrain_img_size=64, window_size=2,
                  with_cp={with_cp},
                  arch=dict(patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=16, in_stride=16,
              out_channels=16, scale_factors=(1, 0.5), num_outs=2),
    bbox_head=dict(_delete_=True, type='UnscaledFCOSHead', num_classes=2, in_channels=16,
                   feat_channels=16, stacked_convs=1, strides=[16, 32], conv_bias=True,
                   regress_ranges=((-1, 24), (24, 1e8)),
                   norm_cfg=dict(type='LayerNorm2d', eps=1e-6)),
    train_cfg=None,
)
train_dataloader = dict(batch_size={batch_size}, sampler=dict(shuffle=True))
train_cfg = dict(max_iters={iterations})
optim_wrapper = dict(constructor='RoPEViTLayerDecay', paramwise_cfg=dict(layer_decay_rate=0.8),
                     clip_grad=dict(max_norm=0.5),
                     optimizer=dict(type='SGD', lr=0.005, momentum=0.9, weight_decay=1e-3))
load_from = {start!r}  # FlexibleRunner draws other weights than Runner
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', interval=10))
custom_hooks = [dict(type='WatchLoss')]
{more}
"""
PARTS = """
from mmdet.models import FCOSHead
from mmdet.registry import HOOKS, MODELS
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from torch import nn


@MODELS.register_module(force=True)
class UnscaledFCOSHead(FCOSHead):
    def _init_layers(self):
        super()._init_layers()
        self.scales = nn.ModuleList(nn.Identity() for _ in self.strides)


@HOOKS.register_module(force=True)
class WatchLoss(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().double()
        all_reduce(loss, 'mean')
        if is_main_process():
            with open(runner.work_dir + '/losses.txt', 'a') as file:
                file.write(f'{loss.item()!r}\\n')
"""
FSDP = """
runner_type = 'FlexibleRunner'
strategy = dict(type='BlockFSDPStrategy')
env_cfg = dict(dist_cfg=dict(backend='gloo'))
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def train(
    directory, name, *, processes, iterations=20, more="", with_cp=False, arguments=(), command=None
):
    """Train by tools/train.py; the losses of all iterations and the last checkpoint.

    `command` starts it; default: torchrun for two processes.
    """
    (directory / "parts.py").write_text(PARTS)
    config = directory / f"{name}.py"
    start = directory / "start.pth"
    settings = dict(batch_size=4 // processes, iterations=iterations, more=more, with_cp=with_cp)
    config.write_text(CONFIG.format(start=str(start), **settings))
    if not start.exists():
        code = "import sys; from ropevit_mmdet.engine.config import *; from torch import save\n"
        code += "model = build_detector(load_config(sys.argv[1]))\n"
        code += "save(dict(state_dict=model.state_dict()), sys.argv[2])"
        assert run_python("-c", code, config, start, path=directory).returncode == 0
    if command is None:
        command = TORCHRUN if processes == 2 else ()
    launcher = ("--launcher", "pytorch") if command else ()
    run = (
        ROOT / "tools" / "train.py",
        config,
        "--work-dir",
        directory / name,
        *launcher,
        *arguments,
    )
    done = run_python(*command, *run, path=directory)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(line) for line in (directory / name / "losses.txt").read_text().splitlines()]
    return losses, torch.load(directory / name / f"iter_{iterations}.pth", weights_only=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A directory with a run of one process in it, its losses and its checkpoint."""
    directory = tmp_path_factory.mktemp("distributed")
    write_tiny(directory, num_images=12)
    return directory, *train(directory, "alone", processes=1)


def assert_same(found, expected):
    losses, checkpoint = found
    torch.testing.assert_close(losses, expected[0], atol=0, rtol=1e-5)
    torch.testing.assert_close(
        checkpoint["state_dict"], expected[1]["state_dict"], atol=1e-5, rtol=0
    )


def test_the_run_learns(alone):
    _, losses, _ = alone
    assert len(losses) == 20 and losses[-1] < 0.95 * losses[0]


def test_ddp_equals_one_process(alone):
    directory, *expected = alone
    assert_same(train(directory, "ddp", processes=2), expected)


def test_fsdp_equals_one_process_and_resumes(alone):
    """The first part validates: the checkpoint is written again for the best one's sake."""
    directory, *expected = alone
    arguments = ("--resume",)
    more = (
        FSDP
        + "train_cfg.update(val_interval=10)\ndefault_hooks['checkpoint']['save_best'] = 'auto'"
    )
    _, saved = train(directory, "fsdp", processes=2, iterations=10, more=more)
    assert saved["meta"]["iter"] == 10 and "best_score" in saved["message_hub"]["runtime_info"]
    found = train(directory, "fsdp", processes=2, more=FSDP, arguments=arguments)
    assert_same(found, expected)


def test_fsdp_checkpoints_load_into_a_plain_model(alone):
    directory, *_ = alone
    checkpoint = directory / "fsdp" / "iter_20.pth"
    done = run_python(ROOT / "tools" / "test.py", directory / "fsdp.py", checkpoint,
                      "--work-dir", directory / "tested", path=directory)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bbox_mAP" in done.stdout + done.stderr


def test_fsdp_with_activation_checkpointing(alone):
    directory, *expected = alone
    assert_same(train(directory, "fsdp_cp", processes=2, more=FSDP, with_cp=True), expected)


def test_fsdp_clips_also_where_a_process_holds_nothing_that_learns(alone):
    """All of the first one's share is frozen: the norm is a sum over both."""
    directory, *_ = alone
    more = FSDP + "model['backbone']['frozen_stages'] = 2\n"
    losses, _ = train(directory, "fsdp_frozen", processes=2, iterations=2, more=more)
    assert len(losses) == 2


def test_fsdp_says_which_parameter_it_cannot_spread():
    strategy = BlockFSDPStrategy.__new__(BlockFSDPStrategy)
    with pytest.raises(ValueError, match="scalar parameter scale: train this detector by DDP"):
        strategy._wrap_model(Scale())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(launcher="none", strategy=dict(type="BlockFSDPStrategy")), "FSDP needs a launcher"),
        (dict(launcher="slurm"), "--launcher slurm needs GPUs"),
        (
            dict(
                launcher="pytorch",
                strategy=dict(type="BlockFSDPStrategy"),
                custom_hooks=[dict(type="EMAHook")],
            ),
            "EMAHook does not work with FSDP",
        ),
        (
            dict(
                launcher="pytorch",
                strategy=dict(type="BlockFSDPStrategy"),
                default_hooks=dict(ema=dict(type="EMAHook"), timer=None),
            ),
            "EMAHook does not work with FSDP",
        ),
    ],
)
def test_what_cannot_start_says_so(settings, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        use_launcher(Config(ConfigDict(settings)))


def test_torchrun_without_a_launcher_says_so(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="give --launcher pytorch too"):
        use_launcher(Config(ConfigDict(launcher="none")))


def test_nothing_is_done_for_one_process(monkeypatch):
    monkeypatch.setattr(distributed.distributed, "init_process_group", pytest.fail)
    config = Config(ConfigDict(launcher="none"))
    use_launcher(config)
    assert "model_wrapper_cfg" not in config


@pytest.mark.parametrize(
    ("end", "parts"), [(None, True), (SystemExit(75), True), (RuntimeError("lost"), False)]
)
def test_processes_part_at_the_end_but_not_after_an_error(end, parts, monkeypatch):
    """Without it a process of the runs above was once aborted while its interpreter shut down."""
    called = []
    monkeypatch.setattr(distributed.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        distributed.distributed, "destroy_process_group", lambda: called.append(True)
    )
    try:
        with launched(Config(ConfigDict(launcher="none"))):
            if end is not None:
                raise end
    except (SystemExit, RuntimeError) as error:
        assert error is end
    assert bool(called) == parts
