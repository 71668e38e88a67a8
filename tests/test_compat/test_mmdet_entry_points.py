"""MMDetection's train.py, which imports the package by `custom_imports`, and its DetInferencer."""

import json
from pathlib import Path

import mmdet

from ropevit_mmdet.datasets.shapes import dataset as shapes
from tests.processes import ROOT, run_python

CONFIG = ROOT / "configs" / "shapes_maskrcnn.py"
TRAIN = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
INFER = """
import sys
import ropevit_mmdet
from mmdet.apis import DetInferencer
config, weights, image, out_dir = sys.argv[1:]
inferencer = DetInferencer(config, weights, device="cpu", palette="random", show_progress=False)
inferencer(image, out_dir=out_dir, pred_score_thr=0.0, no_save_pred=False)
"""


def run(*argv):
    done = run_python(*argv)
    assert done.returncode == 0, done.stderr[-3000:]


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
    run(TRAIN, CONFIG, "--work-dir", work_dir, "--cfg-options", *options)

    checkpoint = work_dir / "iter_2.pth"
    assert checkpoint.is_file()
    script = tmp_path / "infer.py"
    script.write_text(INFER)
    run(script, CONFIG, checkpoint, data / "test" / "000001.png", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "preds" / "000001.json").read_text())
    assert len(result["bboxes"]) == len(result["scores"]) == len(result["masks"])
    assert (tmp_path / "out" / "vis" / "000001.png").is_file()
