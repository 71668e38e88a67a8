"""Trainings and tools on a GPU: mixed precision, resuming, FSDP over NCCL. Run with -m gpu."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from ropevit_mmdet import FrozenBackbone
from tests.fault_injection import ITERATIONS, assert_same, faulty, train, write_config
from tests.processes import ROOT, run_python
from tests.test_engine.test_strategies import test_block_fsdp_strategy as distributed
from tests.tiny_coco import write_tiny

pytestmark = pytest.mark.gpu
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["plain", "fsdp"])
def test_mixed_precision_learns_and_resumes(kind, half, tmp_path):
    write_tiny(tmp_path, num_images=12)
    more, command = "", ()
    if kind == "fsdp":
        more, command = distributed.FSDP.replace("gloo", "nccl"), LAUNCH
    amp = ("--amp", "--cfg-options", f"optim_wrapper.dtype={half}")
    settings = dict(processes=1, more=more, command=command, with_cp=True)
    distributed.train(tmp_path, kind, iterations=10, arguments=amp, **settings)
    losses, last = distributed.train(tmp_path, kind, arguments=("--resume", *amp), **settings)
    assert len(losses) == 20 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert {value.dtype for value in last["state_dict"].values()} <= {torch.float32, torch.int64}
    assert "loss_scaler" in last["optimizer"]


def test_a_killed_run_resumes_to_the_bit_where_the_gpu_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config = write_config(tmp_path, loop=ITERATIONS, workers=2, accumulated=2, ema=True)
    config.write_text(config.read_text() + "randomness = dict(seed=0, deterministic=True)\n")
    expected = train(config, tmp_path / "whole")
    torch.use_deterministic_algorithms(False)
    unlucky_config = faulty(config, dict(kind="killed", iteration=7, stage="after_train_iter"))
    run = (ROOT / "tools" / "train.py", unlucky_config, "--work-dir", tmp_path / "killed")
    killed = run_python(*run, path=tmp_path)
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert_same(train(config, tmp_path / "killed", resume=True), expected)


def test_predict_finds_on_a_gpu_what_a_cpu_finds(tmp_path):
    config = write_tiny(tmp_path)
    done = run_python(ROOT / "tools" / "train.py", config, "--work-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "")
        run = (ROOT / "tools" / "predict.py", config, tmp_path / "run" / "iter_2.pth")
        more = ("--out-dir", out, "--device", device, "--score-thr", "0")
        done = run_python(*run, tmp_path / "data" / "images", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        objects = json.loads((out / "predictions.json").read_text())["annotations"]
        keys = ("image_id", "category_id", "score", "bbox")
        found[device] = [[thing[key] for key in keys] for thing in objects]
    assert len(found["cpu"]) > 3
    assert_close(found["cuda:0"], found["cpu"], atol=0.05, rtol=1e-3)


def test_frozen_maps_come_back_from_the_disk(tmp_path):
    settings = dict(type="RoPEViT", arch="rope_vit_t14", window_size=4)
    model = FrozenBackbone(settings, cache_dir=tmp_path).train().cuda()
    images = torch.randn(3, 3, 56, 70, device="cuda")
    first, again = model(images), model(images[[2, 0, 1]])
    assert again[0].device == images.device
    assert_close(again[0], first[0][[2, 0, 1]], rtol=0, atol=0)
