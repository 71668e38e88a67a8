"""Logs and checkpoints of a run: no absolute path of the machine, no secret of a URL."""

import logging
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.logging.logger import MMFormatter

from ropevit_mmdet.compat.log_text import SECRET, config_from_here, seen_from_here
from ropevit_mmdet.deploy.redaction import KEYS, redact
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from tests.test_cli.test_tools import load_tool
from tests.tiny_coco import write_tiny


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory within a home."""
    directory = tmp_path / "anna" / "work"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("HOME", str(directory.parent))
    return directory


def test_directories_and_secrets(here):
    home, root = here.parent, here.parent.parent
    said = {
        f"saved to {here}/work_dirs/run.": "saved to ./work_dirs/run.",
        f"'{here}' and {here}2, {home}/data": "'.' and ~/work2, ~/data",
        f"{root}/other{here}": ".../work",
        "saved to /output. from /weights.pth": "saved to .../output. from .../weights.pth",
        "to /tmp/x/run/iter_2.pth, to:/a/b (/c/d/)": "to .../iter_2.pth, to:.../b (.../d/)",
        "a='/data', b=\"/my data/o'neil/\" '/'.join": "a='.../data', b=\".../o'neil/\" '/'.join",
        f"file://{home}/a.pth": "file://~/a.pth",
        "file:///disk/a.pth": "file://.../a.pth",
        "./b/c, (1)/2/3 img/s / 4": "./b/c, (1)/2/3 img/s / 4",
        "dict(access_key='ab', x=1)": "dict(access_key='<secret>', x=1)",
        '\'api_key\': "a\\"b", "token": \'c\'': "'api_key': '<secret>', \"token\": '<secret>'",
        "secret_key='a', private-key: \"b\"": "secret_key='<secret>', private-key: '<secret>'",
        "Authorization: Bearer eyJhbGciOi.x-y": "Authorization: Bearer <secret>",
        "cls_token: [1], tokenizer='a'": "cls_token: [1], tokenizer='a'",
        f'File "{sys.prefix}/lib/x.py"': 'File "<python>/lib/x.py"',
        "https://me:word@host/a.pt?sig=ab%20c&x=1 and s3://b/c?k": "https://host/a.pt and s3://b/c",
        "birder://NAME, why? because": "birder://NAME, why? because",
        "mail me@host, 3/4": "mail me@host, 3/4",
    }
    assert {text: seen_from_here(text) for text in said} == said


def test_secrets_of_a_config():
    names = "access_key secret_key secretKey API-KEY api_keys private_key pwd passphrase hf_token"
    config = Config({name: ["a", "b"] for name in [*names.split(), "credentials", "meta_keys"]})
    shown = config_from_here(config).to_dict()
    assert shown.pop("meta_keys") == ["a", "b"]
    assert set(map(tuple, shown.values())) == {(SECRET, SECRET)}
    assert redact(config.to_dict()) == ({**shown, "meta_keys": ["a", "b"]}, {KEYS: SECRET})


def test_the_loggers_of_mmengine_write_so(here):
    record = logging.LogRecord("a", logging.INFO, "file", 1, "to %s/x", (str(here),), None)
    assert MMFormatter(color=False).format(record).endswith("INFO - to ./x")


def test_a_run_leaves_no_path_of_the_machine(here):
    """Its config, data and work dir are neither below the working directory nor at home."""
    place = here.parent.parent / "disk"
    place.mkdir()
    write_tiny(place)
    config = place / "run.py"
    hook = "type='ResumableCheckpointHook', by_epoch=False, interval=2, save_best='auto'"
    config.write_text(
        f"_base_ = './tiny.py'\ndefault_hooks = dict(checkpoint=dict(_delete_=True, {hook}))\n"
        "service = dict(api_key='a1b2')\n"
    )
    runs = place / "runs"
    options = ["--tensorboard", "--cfg-options", "train_cfg.val_interval=2"]
    load_tool("train").main([str(config), "--work-dir", str(runs / "one"), *options])
    logs = [file for file in runs.glob("one/*/**/*") if file.is_file()]
    assert {file.suffix for file in logs} >= {".log", ".json", ".py"} and len(logs) >= 5
    left = [*logs, *runs.glob("one/*.pth"), runs / "one" / "last_checkpoint"]
    assert len(left) == len(logs) + 3
    private = str(here.parent.parent).encode()
    for file in left:
        assert private not in file.read_bytes() and b"a1b2" not in file.read_bytes(), file.name
    # The config that mmengine dumps is the user's own, to be run again.
    assert Config.fromfile(runs / "one" / "run.py").train_dataloader == (
        Config.fromfile(config).train_dataloader
    )

    hub = torch.load(runs / "one" / "iter_2.pth", weights_only=False)["message_hub"]
    (best,) = runs.glob("one/best_*.pth")
    assert hub["runtime_info"]["best_ckpt"] == best.name
    (runs / "one").rename(runs / "moved")
    # A resumed run finds the best checkpoint of the first part, to remove it behind a better one.
    hub["runtime_info"]["best_score"] = -1.0
    saved = torch.load(runs / "moved" / "iter_2.pth", weights_only=False) | {"message_hub": hub}
    torch.save(saved, runs / "moved" / "iter_2.pth")
    load_tool("train").main(
        [str(config), "--work-dir", str(runs / "moved"), *options]
        + ["train_cfg.max_iters=4", "resume=True"]
    )
    assert latest_checkpoint(runs / "moved").name == "iter_4.pth"
    (new,) = runs.glob("moved/best_*.pth")
    assert new.name != best.name
