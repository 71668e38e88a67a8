"""The comparison of heads: the configs that it trains, for how long, and its table."""

import json

import pytest

from benchmarks import heads, recipes
from ropevit_mmdet.apis.adaptation.check import offline, synthetic_batch
from ropevit_mmdet.engine.config import build_detector, load_config

HEADS = ("maskrcnn", "retinanet", "dino", "rtmdet-ins", "mask2former", "eomt")


@pytest.mark.parametrize("head", HEADS)
def test_the_backbone_of_the_transfer_fits_every_head(tmp_path, head):
    runs = recipes.Recipes(tmp_path, 1, 1)
    config = heads.transferred(f"configs/shapes_{head}.py", runs)
    assert config.model.backbone.init_cfg.checkpoint == str(runs.checkpoint)
    assert config.model.data_preprocessor.mean == runs.config.model.data_preprocessor.mean
    assert config.optim_wrapper.constructor == "RoPEViTLayerDecay"
    model = build_detector(offline(config, 112))
    losses, _ = model.parse_losses(
        model(
            **model.data_preprocessor(synthetic_batch(config, [(112, 112)], 2), True), mode="loss"
        )
    )
    losses.backward()
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    if neck := config.model.get("neck"):  # the head's strides stay
        own = load_config(f"configs/shapes_{head}.py").model.neck
        strides = [neck.in_stride / scale for scale in neck.scale_factors]
        assert strides == [own.in_stride / scale for scale in own.scale_factors]


def test_time_decides_about_the_iterations(tmp_path, monkeypatch, capsys):
    runs = []

    def result_of(run, root, log):
        runs.append((run.name.split("-")[1], run.seed, run.options["train_cfg.max_iters"]))
        seconds = 0.5 if "retinanet" in run.name else 2
        cost = root / run.directory / "cost.json"
        cost.parent.mkdir(parents=True)
        cost.write_text(json.dumps(dict(seconds=seconds, peak_mb=1000)))
        metrics = {"coco/bbox_mAP": 0.5 + 0.1 * run.seed}
        if "maskrcnn" in run.name:
            metrics["coco/segm_mAP"] = 0.4
        return dict(metrics=metrics, iterations=runs[-1][2], train_seconds=1)

    monkeypatch.setattr(recipes, "result_of", result_of)
    monkeypatch.setattr(recipes.shapes, "generate", lambda root: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the benchmark sets it
    argv = [f"configs/shapes_{head}.py" for head in HEADS[:2]]
    heads.main([*argv, "--root", str(tmp_path), "--weights", "some.pt", "--minutes", "10"])
    assert runs == [
        *(("trial", 0, 60), ("10min", 0, 300), ("10min", 1, 300)),
        *(("trial", 0, 60), ("10min", 0, 1200), ("10min", 1, 1200)),
    ]
    table = capsys.readouterr().out
    assert "| shapes_maskrcnn | 55.0 ± 5.0 | 40.0 ± 0.0 | 300 | 2 | 1000 |" in table
    assert "| shapes_retinanet | 55.0 ± 5.0 |  | 1200 | 0.5 | 1000 |" in table
