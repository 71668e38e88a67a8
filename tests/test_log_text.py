"""Logs and checkpoints of a run: no absolute path of the machine, no secret of a URL."""

import logging
import os
import sys

import pytest
import torch
from mmengine.logging.logger import MMFormatter

from ropevit_mmdet.stack.log_text import seen_from_here
from tests.test_tools import load_tool
from tests.tiny_coco import write_tiny


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder within a home."""
    folder = tmp_path / "anna" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    return folder


def test_folders_and_secrets(here):
    home, root = here.parent, here.parent.parent
    said = {
        f"saved to {here}/work_dirs/run.": "saved to ./work_dirs/run.",
        f"'{here}' and {here}2, {home}/data": "'.' and ~/work2, ~/data",
        f"{root}/other{here}": f"{root}/other{here}",
        f"file://{home}/a.pth": "file://~/a.pth",
        f'File "{sys.prefix}/lib/x.py"': 'File "<python>/lib/x.py"',
        "https://me:word@host/a.pt?sig=ab%20c&x=1 and s3://b/c?k": "https://host/a.pt and s3://b/c",
        "birder://NAME, why? because": "birder://NAME, why? because",
        "mail me@host, 3/4": "mail me@host, 3/4",
    }
    assert {text: seen_from_here(text) for text in said} == said


def test_the_loggers_of_mmengine_write_so(here):
    record = logging.LogRecord("a", logging.INFO, "file", 1, "to %s/x", (str(here),), None)
    assert MMFormatter(color=False).format(record).endswith("INFO - to ./x")


def test_a_run_leaves_no_path_of_the_machine(here):
    write_tiny(here)
    config = here / "run.py"
    hook = "type='ResumableCheckpointHook', by_epoch=False, interval=2, save_best='auto'"
    config.write_text(
        f"_base_ = './tiny.py'\ndefault_hooks = dict(checkpoint=dict(_delete_=True, {hook}))\n"
    )
    options = ["--cfg-options", "train_cfg.val_interval=2"]
    load_tool("train").main([str(config), "--work-dir", "runs/one", *options])
    logs = [*here.glob("runs/one/*/*.log"), *here.glob("runs/one/*/vis_data/*.json")]
    checkpoints = list(here.glob("runs/one/*.pth"))
    assert len(logs) >= 3 and len(checkpoints) == 2
    private = str(here.parent).encode()
    for file in (*logs, *checkpoints):
        assert private not in file.read_bytes(), file.name
    hub = torch.load(here / "runs/one/iter_2.pth", weights_only=False)["message_hub"]
    assert hub["runtime_info"]["best_ckpt"].startswith(f".{os.sep}runs")
    load_tool("train").main(
        [str(config), "--work-dir", "runs/one", "--resume", *options, "train_cfg.max_iters=4"]
    )
    assert (here / "runs/one/iter_4.pth").is_file()
