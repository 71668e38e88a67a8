"""MMDetection's train.py, which imports the package by `custom_imports`, and its DetInferencer."""

import json
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.apis import DetInferencer, init_detector

from ropevit_mmdet.apis.predict import Detector
from ropevit_mmdet.datasets.shapes import dataset as shapes
from ropevit_mmdet.deploy import publish_checkpoint
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.errors import UserError
from tests.exportable_models import run_command
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny

CONFIG = ROOT / "configs" / "shapes_maskrcnn.py"
TRAIN = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"


def test_mmdet_trains_and_infers_with_the_demo_config(tmp_path):
    data, work_dir = tmp_path / "data", tmp_path / "run"
    shapes.generate(data, num_train=6, num_val=2, num_test=2, size=112)
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "param_scheduler=None"]
    options += ["train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=2"]
    for split in ("train", "val", "test"):
        options.append(f"{split}_dataloader.dataset.data_root={data}/")
        options.append(f"{split}_dataloader.num_workers=0")
        options.append(f"{split}_dataloader.persistent_workers=False")
    options.append(f"val_evaluator.ann_file={data}/annotations/instances_val.json")
    done = run_python(TRAIN, CONFIG, "--work-dir", work_dir, "--cfg-options", *options)
    assert done.returncode == 0, done.stderr[-3000:]

    checkpoint, out = str(work_dir / "iter_2.pth"), tmp_path / "out"
    options = dict(device="cpu", palette="random", show_progress=False)
    inferencer = DetInferencer(str(CONFIG), checkpoint, **options)
    image = str(data / "test" / "000001.png")
    inferencer(image, out_dir=str(out), pred_score_thr=0.0, no_save_pred=False)
    result = json.loads((out / "preds" / "000001.json").read_text())
    assert len(result["bboxes"]) == len(result["scores"]) == len(result["masks"])
    assert (out / "vis" / "000001.png").is_file()


ENTRY_POINTS = {  # how a detector is loaded from its checkpoint
    "init_detector": lambda config, path: init_detector(config, path, device="cpu"),
    "DetInferencer": lambda config, path: DetInferencer(config, path, "cpu", palette="random"),
    "Detector": lambda config, path: Detector(path, config=config, device="cpu"),  # our commands
    "publish": lambda config, path: publish_checkpoint(path, Path(path).parent),
    "inspect": lambda config, path: run_command("inspect", path),  # which has no RoPE ViT
}


@pytest.fixture
def attacked(tmp_path):
    """Writes a checkpoint whose config begins with code that makes the directory `ran`."""

    def write(code=f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n", **meta):
        config, path = write_tiny(tmp_path), tmp_path / "a.pth"
        text = code + load_config(config).pretty_text
        meta = meta or dict(cfg=text, config=text)
        state = build_detector(load_config(config)).state_dict()
        meta["dataset_meta"] = dict(classes=("dark", "light"))
        hub = dict(runtime_info=dict(cfg=text))
        torch.save(dict(state_dict=state, meta=meta, message_hub=hub), path)
        return str(config), str(path)

    yield write
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_code_in_a_checkpoint_does_not_run(name, attacked):
    if name == "inspect":
        with pytest.raises(UserError, match="no weights of a RoPE"):
            ENTRY_POINTS[name](*attacked())
    else:
        ENTRY_POINTS[name](*attacked())


@pytest.mark.parametrize("meta", [{}, {"epoch": 1}], ids=["in meta", "in the message hub"])
def test_det_inferencer_reads_the_config_in_a_checkpoint_as_literals(attacked, meta):
    _, path = attacked("", **meta)
    model = DetInferencer(weights=path, device="cpu", palette="random").model
    assert type(model).__name__ == "RetinaNet"
    with pytest.raises(UserError, match="config is more than assignments"):
        DetInferencer(weights=attacked(**meta)[1], device="cpu")
