"""Starting distributed runs: what cannot start, and the end of the process group."""

import pytest
from mmengine.config import Config, ConfigDict

from ropevit_mmdet.engine import launcher
from ropevit_mmdet.engine.launcher import launched
from ropevit_mmdet.errors import UserError

FSDP = dict(strategy=dict(type="BlockFSDPStrategy"))
EMA = dict(type="EMAHook")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(launcher="none", **FSDP), "need a launcher"),
        (dict(launcher="none"), "add --launcher pytorch"),
        (dict(launcher="pytorch"), "--launcher pytorch needs torchrun"),
        (dict(launcher="pytorch", custom_hooks=[EMA], **FSDP), "EMAHook does not work with FSDP"),
    ],
)
def test_configs_that_cannot_run(settings, message, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=message), launched(Config(ConfigDict(settings))):
        pytest.fail("runs")


@pytest.mark.parametrize(
    ("error", "destroyed"),
    [(None, True), (SystemExit(75), True), (RuntimeError("lost"), False)],
    ids=["finished", "preempted", "failed"],
)
def test_the_group_is_destroyed_except_after_an_error(error, destroyed, monkeypatch):
    """Otherwise the runs of the tests were sometimes aborted while Python shut down."""
    calls = []
    monkeypatch.setattr(launcher.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(launcher.distributed, "destroy_process_group", lambda: calls.append(True))
    try:
        with launched(Config(ConfigDict(launcher="none"))):
            if error is not None:
                raise error
    except (SystemExit, RuntimeError) as caught:
        assert caught is error
    assert bool(calls) == destroyed
