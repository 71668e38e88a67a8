"""Starting distributed runs: what cannot start, and the end of the process group."""

import pytest
from mmengine.config import Config, ConfigDict

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
