"""Runs with the hooks of our configs switched off, replaced, or next to other hooks."""

import sys
from pathlib import Path
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet.engine import latest_checkpoint
from ropevit_mmdet.engine.config import load_config
from tests.fault_injection import UNFORMATTED
from tests.test_configs import CONFIGS
from tests.tiny_coco import write_tiny

RUNTIME = Config.fromfile(CONFIGS / "_base_/default_runtime.py")
OURS = ("checkpoint", "non_finite", "preemption", "checks")


@pytest.fixture
def run(tmp_path):
    """Trains two iterations with the hooks of our configs and the given changes to them."""

    def run(changes=None, **settings):
        file = write_tiny(tmp_path)
        hooks = RUNTIME.default_hooks.to_dict()
        file.write_text(file.read_text() + f"default_hooks = {hooks}\n")
        child = tmp_path / "child.py"
        child.write_text(f"_base_ = './tiny.py'\ndefault_hooks = {changes or {}}\n")
        config = load_config(child, settings, work_dir=str(tmp_path / "run"))
        config.experiment_name = str(tmp_path).replace("/", "_")
        with UNFORMATTED:
            runner = Runner.from_cfg(config)
            runner.train()
        return runner

    return run


@pytest.mark.parametrize(
    "changes",
    [
        dict(checkpoint=None),
        dict.fromkeys(RUNTIME.default_hooks),
        dict(checkpoint=dict(_delete_=True, type="CheckpointHook", by_epoch=False, interval=1)),
    ],
    ids=str,
)
def test_a_hook_can_be_switched_off_or_replaced(changes, run, tmp_path):
    with mock.patch("logging.Logger.warning") as log:
        runner = run(changes)
    assert runner.iter == 2
    names = {type(hook).__name__ for hook in runner.hooks}
    for name, changed in changes.items():
        assert changed is not None or RUNTIME.default_hooks[name].type not in names
    assert (latest_checkpoint(tmp_path / "run") is None) == (changes.get("checkpoint", 1) is None)
    inactive = changes.get("preemption", 1) and "checkpoint" in changes
    warned = "PreemptionHook has no effect" in str(log.call_args_list)
    assert warned == bool(inactive)


def test_hooks_of_a_child_config_are_added(run):
    """Ours are in `default_hooks`, which merge."""
    names = {type(hook).__name__ for hook in run(custom_hooks=[dict(type="EMAHook")]).hooks}
    assert {"EMAHook", *(RUNTIME.default_hooks[name].type for name in OURS)} <= names


def test_artifacts_are_uploaded_from_any_directory(run, tmp_path, monkeypatch):
    mlflow, uploaded = mock.MagicMock(), []
    mlflow.log_artifact = lambda path, directory: uploaded.append(Path(path).read_text())
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(**{"visualizer.vis_backends": [dict(type="MLflowVisBackend")]})
    assert len(uploaded) >= 1  # the config
