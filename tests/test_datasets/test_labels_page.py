"""docs/labels.md: its commands lead from labels to an exported detector, on images drawn here."""

import shlex
from pathlib import Path

import pytest

from ropevit_mmdet.engine.config import load_config
from tests.commands import ropevit
from tests.test_datasets.test_conversion import write_voc, write_yolo
from tests.test_docs import ROOT, commands


def shrink(path: str) -> None:
    """Rewrites a config: a small network and images, two iterations."""
    config = load_config(path)
    config.model.backbone.update(arch="rope_vit_t14", init_cfg=None, out_indices=0)
    config.model.neck.update(in_channels=192, out_channels=16)
    head = config.model.bbox_head
    head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            step.update({key: (112, 112) for key in ("scale", "crop_size") if key in step})
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.interval = 2
    config.dump(path)


@pytest.mark.parametrize(
    ("label_format", "write", "exported"),
    [
        ("yolo", write_yolo, False),
        pytest.param("voc", write_voc, True, marks=pytest.mark.slow),  # the export takes long
    ],
)
def test_the_commands_of_the_page(label_format, write, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "labels")
    install, *lines = commands(ROOT / "docs" / "labels.md")
    assert install.startswith("pip install") and len(lines) <= 6 and "export" in lines[-1]
    names = {"LABELS": "labels", "voc": label_format, "iter_5000.pth": "iter_2.pth"}
    for line in lines if exported else lines[:-1]:
        words = [word for word in shlex.split(line)[1:] if word != "--amp"]
        for name, stand_in in names.items():
            words = [word.replace(name, stand_in) for word in words]
        assert not ropevit(*words), line
        if words[0] == "convert":
            shrink("my.py")
    assert Path("detector.onnx").exists() == exported
