"""Comparing backbones: candidates as changes of a protocol, costs, tables, the whole tool once."""

import csv
import importlib.util
import io
import json
from argparse import Namespace

import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from ropevit_mmdet.benchmark.flops import count_flops
from ropevit_mmdet.compare.candidates import Candidate, parse_candidates
from ropevit_mmdet.compare.cost import count_operations
from ropevit_mmdet.compare.table import comma_separated, markdown, rows_of, two_evaluators
from ropevit_mmdet.run.config import build_detector, load_config
from tests import oracle
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny

CONFIGS = ROOT / "configs"
TOOL = ROOT / "tools" / "compare_backbones.py"
TINY = dict(patch_size=14, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_reg_tokens=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Written by birder, of an architecture that has a name."""
    pytest.importorskip("birder")
    net = oracle.birder_net("rope_vit_t14", None)
    return oracle.write_checkpoint(net, tmp_path_factory.mktemp("checkpoint"), "net")


@pytest.fixture
def protocol():
    return load_config(CONFIGS / "shapes_compare.py")


def detector(protocol, spec):
    """The detector of a candidate, built and run once; its config."""
    (candidate,) = parse_candidates([spec], protocol)
    config = load_config(CONFIGS / "shapes_compare.py", candidate.options)
    model = build_detector(config).eval()
    strides = model.neck.strides
    maps = model.extract_feat(torch.zeros(1, 3, 224, 224))
    assert [224 / level.shape[-1] for level in maps] == list(strides) == [7, 14, 28]
    return config, model


def test_a_checkpoint_brings_architecture_colours_and_window(protocol, checkpoint):
    config, model = detector(protocol, f"ours={checkpoint}")
    backbone = config.model.backbone
    assert backbone.arch == "rope_vit_t14" and backbone.init_cfg.checkpoint == str(checkpoint)
    assert config.model.neck.in_channels == 192
    expected = [round(255 * value, 4) for value in oracle.RGB_STATS["mean"]]
    assert config.model.data_preprocessor.mean == expected
    model.backbone.init_weights()  # strict: the architecture is right
    assert (
        config.train_cfg == protocol.train_cfg and config.model.rpn_head == protocol.model.rpn_head
    )


def test_a_patch_turns_by_the_angle_that_the_weights_were_trained_with(protocol, checkpoint):
    """The protocol says it in pixels, of a grid that its own weights are for."""
    for pixels, grid in ((224, 16), (448, 32)):
        protocol.model.backbone.rope_interpolation = pixels
        (candidate,) = parse_candidates([f"ours={checkpoint}"], protocol)
        assert candidate.options["model.backbone.rope_interpolation"] == 14 * grid
    protocol.model.backbone.update(arch="rope_vit_t14", pretrain_img_size=112)
    (candidate,) = parse_candidates([f"ours={checkpoint}"], protocol)
    assert candidate.options["model.backbone.rope_interpolation"] == 448 * 2
    assert candidate.options["model.backbone.window_size"] == 16
    protocol.model.backbone.rope_interpolation = "none"
    (candidate,) = parse_candidates([f"ours={checkpoint}"], protocol)
    assert "model.backbone.rope_interpolation" not in candidate.options


def test_scratch_takes_the_weights_and_the_layer_decay_away(protocol):
    config, _ = detector(protocol, "none=scratch")
    assert config.model.backbone.init_cfg is None
    assert config.optim_wrapper.paramwise_cfg.layer_decay_rate == 1.0
    assert config.model.backbone.arch == protocol.model.backbone.arch


def test_any_registered_backbone_goes_through_the_same_neck(protocol):
    config, model = detector(protocol, f"resnet={CONFIGS / 'backbones' / 'resnet18.py'}")
    assert type(model.backbone).__name__ == "ResNet"
    assert model.neck.own_strides == (8, 16, 32)
    assert config.optim_wrapper.constructor == "DefaultOptimWrapperConstructor"


def test_in_a_frozen_protocol_all_are_frozen(checkpoint):
    frozen = load_config(CONFIGS / "shapes_frozen.py")
    specs = [
        f"ours={checkpoint}",
        f"resnet={CONFIGS / 'backbones' / 'resnet18.py'}",
        "none=scratch",
    ]
    for candidate in parse_candidates(specs, frozen):
        config = load_config(CONFIGS / "shapes_frozen.py", candidate.options)
        model = build_detector(config)
        assert type(model.backbone).__name__ == "FrozenBackbone"
        assert not any(p.requires_grad for p in model.backbone.parameters())
    plain = load_config(CONFIGS / "shapes_compare.py", {"model.backbone.frozen_stages": 6})
    for candidate in parse_candidates(specs, plain):
        config = load_config(CONFIGS / "shapes_compare.py", candidate.options)
        if candidate.name == "resnet":
            assert config.model.backbone.type == "FrozenBackbone"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["nothing"], "'nothing' is not NAME=CHECKPOINT"),
        (["a=scratch", "a=scratch"], "two candidates are called 'a'"),
        (["a/b=scratch"], "name 'a/b'"),
        (["a=missing.py"], "config file missing.py does not exist"),
        (["a=missing.pt"], "checkpoint not found: missing.pt"),
    ],
)
def test_what_is_wrong_with_a_candidate_is_said(protocol, specs, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_candidates(specs, protocol)


def test_a_backbone_of_several_maps_needs_a_neck_of_its_own(protocol, tmp_path):
    path = tmp_path / "several.py"
    path.write_text("model = dict(backbone=dict(type='ResNet', depth=18))")
    with pytest.raises(ValueError, match="returns 4 maps and the protocol's neck takes one"):
        parse_candidates([f"a={path}"], protocol)
    path.write_text(
        "model = dict(backbone=dict(type='ResNet', depth=18, out_indices=(1, 2, 3)),"
        "neck=dict(type='FPN', in_channels=[128, 256, 512], out_channels=64, num_outs=3))"
    )
    (candidate,) = parse_candidates([f"a={path}"], protocol)
    config = load_config(CONFIGS / "shapes_compare.py", candidate.options)
    assert config.model.neck.type == "FPN" and "in_stride" not in config.model.neck


def test_operations_are_those_of_the_closed_form():
    """Attention among them, which the counter misses in fused form."""
    model = MODELS.build(dict(type="RoPEViT", arch="rope_vit_t14", window_size=4)).eval()
    with torch.no_grad():
        assert count_operations(lambda: model(torch.zeros(1, 3, 126, 84))) == count_flops(
            model, 126, 84
        )


def test_tables_hold_means_and_spreads():
    def result(ap, circle):
        names = {f"box/bbox_mAP{end}": ap for end in ("", "_50", "_75", "_s", "_m")}
        metrics = {**names, "box/bbox_mAP_l": -1.0, "box/circle_precision": circle}
        return {"metrics": metrics, "train_seconds": 10.0}

    cost = dict(
        parameters=2e6, backbone_parameters=1e6, gflops=3.5, seconds_per_image=0.25, peak_bytes=4e6
    )
    rows = rows_of({"ours": [result(0.25, 0.5), result(0.35, 0.7)]}, {"ours": cost})
    text = markdown(rows)
    assert "| ours | 30.0 ± 5.0 | 30.0 ± 5.0 |" in text and "| none |" in text
    assert "| ours | 60.0 ± 10.0 |" in text
    (row,) = csv.DictReader(io.StringIO(comma_separated(rows)))
    assert row["box AP"] == "30.0" and row["box AP spread"] == "5.0" and row["images/s"] == "4.0"
    assert row["box circle"] == "60.0" and row["GFLOP"] == "3.5"


def test_every_candidate_runs_with_the_same_seeds():
    spec = importlib.util.spec_from_file_location("tool", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    args = Namespace(protocol="p.py", seeds=3)
    runs = [tool.seeded(args, Candidate(name, {"a": name}), {"b": 1}) for name in "xy"]
    assert [run.seed for run in runs[0]] == [run.seed for run in runs[1]] == [0, 1, 2]
    assert runs[1][2].options == {"a": "y", "b": 1} and runs[1][2].folder == "y-seed2"


def test_boxes_and_masks_are_evaluated_apart():
    evaluators = two_evaluators(dict(type="CocoMetric", metric=["bbox", "segm"], ann_file="a"))
    assert [e["prefix"] for e in evaluators] == ["box", "mask"]
    assert [e["metric"] for e in evaluators] == ["bbox", "segm"]
    with pytest.raises(ValueError, match="must be one CocoMetric"):
        two_evaluators(dict(type="VOCMetric"))


def test_the_tool_compares_and_goes_on_where_it_stopped(tmp_path):
    write_tiny(tmp_path)
    protocol = tmp_path / "protocol.py"
    protocol.write_text(
        "_base_ = './tiny.py'\n"
        f"model = dict(backbone=dict(_delete_=True, type='RoPEViT', arch=dict({TINY}),"
        " pretrain_img_size=56),"
        " neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=32, out_channels=16,"
        " scale_factors=(1, 0.5), num_outs=2),"
        " bbox_head=dict(anchor_generator=dict(strides=[14, 28])))\n"
        "train_cfg = dict(max_iters=4, val_interval=2)\n"
        "default_hooks = dict(logger=dict(type='LoggerHook', interval=1))\n"
    )
    argv = [TOOL, protocol, "none=scratch"]
    argv += [f"resnet={CONFIGS / 'backbones' / 'resnet18.py'}", "--work-dir", tmp_path / "out"]
    argv += ["--seeds", "1"]
    done = run_python(*argv)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 2 runs done" in done.stderr
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in rows] == ["none", "resnet"]
    assert all(row["seeds"] == 1 and row["costs"]["images/s"] > 0 for row in rows)
    assert all(row["costs"]["peak MB"] > 0 and row["costs"]["GFLOP"] > 0 for row in rows)
    for name in ("ap_over_latency.png", "learning_curves.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 300
    (tmp_path / "out" / "resnet-seed0" / "result.json").unlink()
    again = run_python(*argv)
    assert again.returncode == 0 and again.stderr.count("running, log in") == 1
    assert again.stdout == done.stdout


def test_the_tool_says_what_is_wrong_before_it_trains(tmp_path):
    done = run_python(
        TOOL, CONFIGS / "shapes_compare.py", "a=nowhere.pt",
        "--work-dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.strip() == "error: checkpoint not found: nowhere.pt"
    assert not (tmp_path / "out").exists()
