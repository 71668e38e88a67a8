"""`ropevit test`: metrics, files of predictions, and one line for what a user gets wrong."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ropevit_cli import test as command
from ropevit_mmdet.engine.config import load_config
from tests.commands import fails, ropevit


def evaluate(*argv):
    """The metrics of `ropevit test *argv`."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.evaluate(parser.parse_args([str(arg) for arg in argv]))


def test_metrics_pickle_and_drawn_images(trained, tmp_path):
    config, checkpoint = trained
    out = tmp_path / "results.pkl"
    argv = [config, checkpoint, "--work-dir", tmp_path, "--out", out, "--show-dir", "drawn"]
    metrics = evaluate(*argv)
    assert 0 <= metrics["coco/bbox_mAP"] <= 1
    results = pickle.loads(out.read_bytes())
    assert len(results) == 4 and results[0]["pred_instances"]["bboxes"].shape == (10, 4)
    assert len(list(tmp_path.glob("*/drawn/*.png"))) == 4


def test_json_results_have_the_same_metrics(trained, tmp_path):
    config, checkpoint = trained
    document = json.loads((config.parent / "data" / "annotations.json").read_text())
    ids = {1: 70, 2: 30}  # another order than that of the labels
    for category in document["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in document["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    renumbered = tmp_path / "renumbered.json"
    renumbered.write_text(json.dumps(document))
    out = tmp_path / "new" / "results.json"
    options = [f"test_dataloader.dataset.ann_file={renumbered}"]
    options.append(f"test_evaluator.ann_file={renumbered}")
    argv = [config, checkpoint, "--work-dir", tmp_path, "--out", out, "--cfg-options", *options]
    metrics = evaluate(*argv)
    results = json.loads(out.read_text())
    assert len(results) == 40 and {one["category_id"] for one in results} <= {30, 70}
    coco = COCO(renumbered)
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(metrics["coco/bbox_mAP"], abs=1e-3)


def test_tta_merges_views(trained, tmp_path):
    """The same view twice gives what one view gives; a mirrored view changes it."""
    config, checkpoint = trained
    twice = config.with_name("twice.py")
    steps = load_config(config).test_dataloader.dataset.pipeline
    flips = [{"type": "RandomFlip", "prob": 0.0}] * 2
    packs = [{**steps[-1], "meta_keys": (*steps[-1].meta_keys, "flip", "flip_direction")}]
    steps[-1] = {"type": "TestTimeAug", "transforms": [flips, packs]}
    twice.write_text(f"_base_ = './{config.name}'\ntta_pipeline = {steps!r}\n")
    out = tmp_path / "results.json"
    scores = {}
    for name, path, extra in (
        ("plain", config, []),
        ("mirrored", config, ["--tta"]),
        ("twice", twice, ["--tta"]),
    ):
        ropevit("test", path, checkpoint, "--work-dir", tmp_path, "--out", out, *extra)
        scores[name] = [one["score"] for one in json.loads(out.read_text())][:5]
    assert scores["twice"] == pytest.approx(scores["plain"])
    assert scores["mirrored"] != pytest.approx(scores["plain"])


@pytest.mark.parametrize("form", ["[metric]", "Evaluator", "MultiDatasetsEvaluator"])
def test_tta_of_several_datasets(form, trained, tmp_path):
    config, checkpoint = trained
    document = json.loads((config.parent / "data" / "annotations.json").read_text())
    settings = load_config(config)
    parts, metrics = [], []
    for index in range(2):
        images = dict(images=document["images"][index::2])
        file = tmp_path / f"{index}.json"
        file.write_text(json.dumps(document | images))
        parts.append(dict(settings.test_dataloader.dataset, ann_file=str(file)))
        metrics.append(dict(settings.test_evaluator, ann_file=str(file)))
    evaluator = dict(_delete_=True, type=form, metrics=[settings.test_evaluator])
    if form == "MultiDatasetsEvaluator":
        evaluator |= dict(metrics=metrics, dataset_prefixes=["a", "b"])
    dataset = dict(_delete_=True, type="ConcatDataset", datasets=parts)
    several = config.with_name("several.py")
    several.write_text(
        f"_base_ = './{config.name}'\ntest_dataloader = dict(dataset={dataset})\n"
        f"test_evaluator = {[settings.test_evaluator] if form == '[metric]' else evaluator}\n"
    )
    argv = [checkpoint, "--work-dir", tmp_path, "--tta", "--out"]
    one, both = (
        (evaluate(path, *argv, tmp_path / path.stem / "x.json"),
         sorted(json.loads((tmp_path / path.stem / "x.json").read_text()), key=json.dumps))
        for path in (config, several)
    )  # fmt: skip
    assert one[1] == both[1] != []
    if form == "MultiDatasetsEvaluator":
        assert {"a/coco/bbox_mAP", "b/coco/bbox_mAP"} <= both[0].keys()
    else:
        assert one[0] == both[0]


def test_wrong_checkpoints(trained, tmp_path, monkeypatch, capsys):
    config, good = trained
    monkeypatch.chdir(tmp_path)
    Path("truncated.pth").write_bytes(good.read_bytes()[:10_000])
    Path("text.pth").write_text("not a checkpoint")
    torch.save({"state": {"norm.weight": torch.ones(3)}, "task": "x"}, "birder.pth")
    for name in ("gone.pth", "truncated.pth", "text.pth", "birder.pth"):
        assert name in fails(capsys, "test", config, name)
        assert name in fails(capsys, "train", config, "--resume", name)
    assert not Path("work_dirs").exists()


def test_checkpoint_of_another_architecture(trained, tmp_path, monkeypatch, capsys):
    config, checkpoint = trained
    monkeypatch.chdir(tmp_path)
    options = ["--cfg-options", "model.backbone.depth=34", "model.bbox_head.num_classes=3"]
    line = fails(capsys, "test", config, checkpoint, *options)
    assert "backbone.layer1.2." in line and "bbox_head.retina_cls.weight" in line
    assert "(2, 16, 3, 3)" in line and "(3, 16, 3, 3)" in line
    assert not Path("work_dirs").exists()


def test_show_needs_a_screen(trained, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "--show needs a screen" in fails(capsys, "test", *trained, "--show")
