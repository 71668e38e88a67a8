"""A resumed run whose config differs from that of its checkpoint."""

import shutil
from copy import deepcopy
from unittest import mock

import pytest
from mmengine.config import Config
from torch import optim

from ropevit_mmdet.engine.hooks._resumed_settings import resume_warning
from tests.fault_injection import UNFORMATTED, train, write_config
from tests.test_configs import CONFIGS

CONFIG = Config.fromfile(CONFIGS / "ropevit_maskrcnn_1xb2_12e.py")
with UNFORMATTED:
    CHECKPOINT = dict(meta=dict(cfg=CONFIG.pretty_text), random_states=[{}])


def warning(changes, checkpoint=CHECKPOINT, processes=1):
    config = deepcopy(CONFIG)
    config.merge_from_dict(changes)
    return resume_warning(checkpoint, config, processes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optim_wrapper.optimizer.lr": 5e-5}, "optim_wrapper.optimizer.lr 0.0001 -> 5e-05"),
        ({"param_scheduler.1.gamma": 0.5}, "param_scheduler.1.gamma 0.1 -> 0.5"),
        ({"param_scheduler": [dict(type="ConstantLR")]}, " more. Optimizer"),
        ({"auto_scale_lr.enable": True}, "auto_scale_lr.enable False -> True"),
        ({"train_cfg.max_iters": 99}, "train_cfg.max_iters 708000 -> 99"),
        ({"train_dataloader.batch_size": 4}, "train_dataloader.batch_size 2 -> 4"),
    ],
    ids=str,
)
def test_what_differs_is_named_with_the_fix(changes, text):
    assert text in warning(changes)
    assert warning(changes).endswith("from these weights, use load_from and not resume")


def test_the_same_settings_do_not_warn():
    assert warning({}) is None
    written = {"optim_wrapper.optimizer": dict(type=optim.AdamW, betas=[0.9, 0.999])}
    assert warning({"work_dir": "b", "train_dataloader.num_workers": 1, **written}) is None
    assert warning({"train_cfg.max_iters": 9}, checkpoint=dict(meta={})) is None
    assert warning({"train_cfg.max_iters": 9}, dict(meta=dict(cfg="max_iters = f()"))) is None


def test_another_number_of_processes():
    assert "processes 1 -> 2" in warning({}, processes=2)
    assert warning({}, checkpoint=dict(meta=CHECKPOINT["meta"]), processes=2) is None


def test_a_resumed_run_warns(tmp_path):
    more = "default_hooks['checks'] = dict(type='RoPEViTChecks')\ntrain_cfg.update(max_iters=3)\n"
    train(write_config(tmp_path, more=more), tmp_path / "run")
    more += "optim_wrapper['optimizer']['lr'] = 0.5\n"
    more += "auto_scale_lr = dict(base_batch_size=64)\ntrain_cfg.update(max_iters=4)\n"
    with mock.patch("logging.Logger.warning") as log:
        config = write_config(tmp_path, more=more)
        checkpoint = train(config, tmp_path / "run", resume=True)
    texts = " ".join(str(call.args[0]) for call in log.call_args_list)
    assert "optim_wrapper.optimizer.lr 0.01 -> 0.5" in texts
    assert "the effective batch size is 2" in texts
    assert checkpoint["optimizer"]["param_groups"][0]["initial_lr"] == 0.01
    shutil.rmtree(tmp_path / "data" / "images")  # a complete run loads none
    assert train(config, tmp_path / "run", resume=True)["meta"]["iter"] == 4
