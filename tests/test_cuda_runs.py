"""Runs on a GPU: mixed precision, resuming, FSDP over NCCL. Run with -m gpu."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from ropevit_mmdet import FrozenBackbone
from tests.fault_injection import TRAIN, assert_same, train, with_failure, write_config
from tests.processes import run_python
from tests.test_engine.test_strategies import test_block_fsdp_strategy as distributed
from tests.tiny_coco import write_tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("strategy", ["plain", "fsdp"])
def test_mixed_precision_learns_and_resumes(strategy, half, tmp_path):
    write_tiny(tmp_path, num_images=12)
    more, processes = f"optim_wrapper['dtype'] = {half!r}\n", None
    more += "model['backbone']['with_cp'] = True\n"
    if strategy == "fsdp":
        more, processes = more + distributed.FSDP.replace("gloo", "nccl"), 1
    settings = dict(processes=processes, more=more)
    distributed.train(tmp_path, strategy, iterations=10, arguments=("--amp",), **settings)
    arguments = ("--amp", "--resume")
    losses, last = distributed.train(tmp_path, strategy, arguments=arguments, **settings)
    assert len(losses) == 20 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert {value.dtype for value in last["state_dict"].values()} <= {torch.float32, torch.int64}
    assert "loss_scaler" in last["optimizer"]


def test_a_killed_run_resumes_to_the_bit_where_the_gpu_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    more = "randomness = dict(seed=0, deterministic=True)\n"
    config = write_config(tmp_path, workers=2, accumulated=2, ema=True, more=more)
    expected = train(config, tmp_path / "uninterrupted")
    torch.use_deterministic_algorithms(False)
    failing = with_failure(config, dict(event="sigkill", iteration=7, stage="after_train_iter"))
    killed = run_python(*TRAIN, failing, tmp_path / "killed", path=tmp_path)
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert_same(train(config, tmp_path / "killed", resume=True), expected)


def test_predict_has_the_same_results_on_a_gpu_and_a_cpu(tmp_path):
    config = write_tiny(tmp_path)
    done = run_python(*TRAIN, config, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    results = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "")
        run = ("-m", "ropevit_cli.main", "predict", config, tmp_path / "run" / "iter_2.pth")
        more = ("--out-dir", out, "--device", device, "--score-thr", "0")
        done = run_python(*run, tmp_path / "data" / "images", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        objects = json.loads((out / "predictions.json").read_text())["annotations"]
        keys = ("image_id", "category_id", "score", "bbox")
        results[device] = [[annotation[key] for key in keys] for annotation in objects]
    assert len(results["cpu"]) > 3
    assert_close(results["cuda:0"], results["cpu"], atol=0.05, rtol=1e-3)


def test_frozen_feature_maps_are_read_from_the_cache(tmp_path):
    settings = dict(type="RoPEViT", arch="rope_vit_t14", window_size=4)
    model = FrozenBackbone(settings, cache_dir=tmp_path).train().cuda()
    images = torch.randn(3, 3, 56, 70, device="cuda")
    first, again = model(images), model(images[[2, 0, 1]])
    assert again[0].device == images.device
    assert_close(again[0], first[0][[2, 0, 1]], rtol=0, atol=0)
