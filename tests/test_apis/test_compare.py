"""Comparing backbones: candidates as changes of a protocol, costs, the whole tool once."""

import json
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from ropevit_mmdet.apis.benchmark.flops import count_flops
from ropevit_mmdet.apis.compare import cost
from ropevit_mmdet.apis.compare.candidates import Candidate, parse_candidates
from ropevit_mmdet.apis.compare.cost import count_operations
from ropevit_mmdet.apis.compare.experiment import Run, RunFailed
from ropevit_mmdet.engine.config import build_detector, load_config
from tests import oracle
from tests.processes import ROOT
from tests.test_apis.test_compare_table import COST, result
from tests.test_cli.test_tools import load_tool
from tests.tiny_coco import write_tiny

tool = load_tool("compare_backbones")
CONFIGS = ROOT / "configs"
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


def test_a_checkpoint_brings_architecture_colors_and_window(protocol, checkpoint):
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
    protocol.model.backbone.rope_interpolation = 448
    protocol.model.backbone.update(arch="rope_vit_t16")
    (candidate,) = parse_candidates([f"ours={checkpoint}"], protocol)
    assert candidate.options["model.backbone.rope_interpolation"] == 448 / 16 / 7 * 224
    protocol.model.backbone.rope_interpolation = "none"
    (candidate,) = parse_candidates([f"ours={checkpoint}"], protocol)
    assert "model.backbone.rope_interpolation" not in candidate.options


@pytest.mark.parametrize(
    ("name", "settings"),
    [("rope_vit_t16", None), ("rope_vit_t14", {"pt_grid_size": (8, 8), "num_reg_tokens": 2})],
    ids=["another patch", "a config that changes it"],
)
def test_files_of_other_architectures_keep_their_angle_and_window(
    protocol, tmp_path, name, settings
):
    """Trained at 224 pixels, whatever the grid that the coordinates were scaled to."""
    net = oracle.birder_net(name, settings)
    path = oracle.write_checkpoint(net, tmp_path, "net", config=settings)
    protocol.model.backbone.window_size = 4
    (candidate,) = parse_candidates([f"ours={path}"], protocol)
    config = load_config(CONFIGS / "shapes_compare.py", candidate.options)
    backbone = build_detector(config).backbone
    backbone.init_weights()  # strict: the architecture is right
    assert config.model.backbone.rope_interpolation == 224
    assert config.model.backbone.window_size == 224 // backbone.arch.patch_size
    assert backbone.arch.num_reg_tokens == (2 if settings else 0)


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
        (["_a=scratch"], "name '_a' must begin with a letter"),
        (["a=missing.py"], "candidate a: config file missing.py does not exist"),
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
    with pytest.raises(ValueError, match=r"maps of \[56, 28, 14\] in its neck"):
        parse_candidates([f"a={path}"], protocol)
    protocol.model.neck.update(out_strides=(8, 16, 32))
    (candidate,) = parse_candidates([f"a={path}"], protocol)
    config = load_config(CONFIGS / "shapes_compare.py", candidate.options)
    assert config.model.neck.type == "FPN" and "in_stride" not in config.model.neck


def test_what_registers_a_backbone_is_imported_in_its_runs_too(protocol, tmp_path, monkeypatch):
    (tmp_path / "users_backbones.py").write_text(
        "from mmdet.registry import MODELS\n"
        "from torch import nn\n"
        "@MODELS.register_module()\n"
        "class Users(nn.Conv2d):\n"
        "    def __init__(self, stride, whole=False):\n"
        "        super().__init__(3, 8, stride, stride)\n"
        "        self.whole = whole\n"
        "    def forward(self, images):\n"
        "        level = super().forward(images)\n"
        "        return level if self.whole else (level,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "users.py"
    path.write_text(
        "custom_imports = dict(imports='users_backbones')\n"
        "model = dict(backbone=dict(type='Users', stride=16))\n"
    )
    config, _ = detector(protocol, f"a={path}")
    imports = dict(imports=["ropevit_mmdet", "users_backbones"], allow_failed_imports=False)
    assert config.custom_imports == imports
    options = {"model.backbone.whole": True}
    (tmp_path / "whole.py").write_text(load_config(path, options).pretty_text)
    with pytest.raises(ValueError, match="candidate a: the backbone must return a tuple of maps"):
        parse_candidates([f"a={tmp_path / 'whole.py'}"], protocol)
    path.write_text("model = dict(backbone=dict(type='Unknown'))")
    with pytest.raises(ValueError, match="candidate a: the config's model: .*Unknown is not in"):
        parse_candidates([f"a={path}"], protocol)


def test_a_map_of_stride_32_is_resampled_to_the_strides_of_a_protocol_for_coco(tmp_path):
    """Of its finest, 3.5, the neck's layers make 8 at most."""
    protocol, path = CONFIGS / "ropevit_maskrcnn.py", tmp_path / "resnet.py"
    path.write_text("model = dict(backbone=dict(type='ResNet', depth=18, out_indices=(3,)))")
    (candidate,) = parse_candidates([f"a={path}"], load_config(protocol))
    neck = MODELS.build(load_config(protocol, candidate.options).model.neck)
    assert neck.own_strides == (8, 8, 16, 32, 64)
    with torch.no_grad():
        maps = neck(torch.zeros(1, 512, 28, 28))
    assert [896 / level.shape[-1] for level in maps] == [3.5, 7, 14, 28, 56]


def test_operations_are_those_of_the_closed_form():
    """Attention among them, which the counter misses in fused form."""
    model = MODELS.build(dict(type="RoPEViT", arch="rope_vit_t14", window_size=4)).eval()
    with torch.no_grad():
        assert count_operations(lambda: model(torch.zeros(1, 3, 126, 84))) == count_flops(
            model, 126, 84
        )


def test_time_is_read_when_a_gpu_is_done(monkeypatch):
    order = []
    detector = cost.Detector.__new__(cost.Detector)
    detector.device, detector._batch = torch.device("cuda"), lambda number: None
    detector.model = Namespace(test_step=lambda batch: order.append("work"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    assert detector.seconds(0) >= 0 and order == ["wait", "work", "wait"]


def test_every_candidate_runs_with_the_same_seeds():
    args = Namespace(protocol="p.py", seeds=3)
    runs = [tool.seeded(args, Candidate(name, {"a": name}), {"b": 1}) for name in "xy"]
    assert [run.seed for run in runs[0]] == [run.seed for run in runs[1]] == [0, 1, 2]
    assert runs[1][2].options == {"a": "y", "b": 1} and runs[1][2].directory == "y-seed2"


def test_the_tool_compares_and_goes_on_where_it_stopped(tmp_path, checkpoint, monkeypatch, capsys):
    """Backbones that find nothing, so short is the training."""
    annotations = write_tiny(tmp_path).parent / "data" / "annotations.json"
    protocol = tmp_path / "protocol.py"
    protocol.write_text(
        "_base_ = './tiny.py'\n"
        f"model = dict(backbone=dict(_delete_=True, type='RoPEViT', arch=dict({TINY}),"
        " pretrain_img_size=56),"
        " neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=32, out_channels=16,"
        " scale_factors=(1, 0.5), num_outs=2),"
        " bbox_head=dict(anchor_generator=dict(strides=[14, 28])), test_cfg=dict(score_thr=0.99))\n"
        "train_cfg = dict(max_iters=2, val_interval=1)\n"
        "default_hooks = dict(logger=dict(type='LoggerHook', interval=1))\n"
        "test_evaluator = dict(ann_file='nowhere.json')\n"
    )
    fresh = cost._in_fresh_process  # one is enough: each imports all again

    def in_fresh_process(function, directory):
        return fresh(function, directory) if directory.name == "ours-seed0" else 5 * 10**6

    monkeypatch.setattr(cost, "_in_fresh_process", in_fresh_process)
    root = tmp_path / "out"
    argv = [protocol, f"ours={checkpoint}", f"resnet={CONFIGS / 'backbones' / 'resnet18.py'}"]
    argv += ["--seeds", "1", "--cfg-options", f"test_evaluator.ann_file={annotations}"]
    argv = [str(word) for word in argv]
    tool.main([*argv, "--work-dir", str(root)])
    first = capsys.readouterr()
    assert "1 of 2 runs done" in first.err
    assert "ours-seed0: box/bbox_mAP 0.0 percent" in first.err
    rows = json.loads((root / "comparison.json").read_text())
    assert [row["name"] for row in rows] == ["ours", "resnet"]
    assert all(row["seeds"] == 1 and row["costs"]["images/s"] > 0 for row in rows)
    assert all(row["costs"]["peak MB"] > 0 and row["costs"]["GFLOP"] > 0 for row in rows)
    assert all(row["AP"]["box AP"] == [0.0, 0.0] for row in rows)
    for name in ("ap_over_latency.png", "learning_curves.png"):
        with Image.open(root / name) as image:
            assert min(image.size) > 300

    measured = []
    monkeypatch.setattr(tool, "measure_costs", lambda *_: measured.append(1) or [COST, COST])
    monkeypatch.chdir(tmp_path)
    tool.main([*argv, "--work-dir", "out"])
    again = capsys.readouterr()
    assert "running, log in" not in again.err and not measured
    assert again.out == first.out.replace(str(root), "out")
    result_file = root / "resnet-seed0" / "result.json"
    kept = json.loads(result_file.read_text())
    result_file.write_text(json.dumps(kept | {"train_seconds": 5.0}))  # as of another training
    tool.main([*argv, "--work-dir", "out"])
    assert measured == [1]

    def result_of(run, *rest):
        if run.name == "none":
            raise RunFailed(f"{run.directory} failed, see log.txt")
        return kept_result_of(run, *rest)

    kept_result_of = tool.result_of
    monkeypatch.setattr(tool, "result_of", result_of)
    with_another = [*argv[:1], "none=scratch", *argv[1:], "--work-dir", "out"]
    with pytest.raises(SystemExit, match="error: 1 of 3 backbones failed: none"):
        tool.main(with_another)
    table = (root / "comparison.md").read_text()
    assert table.endswith("\nWithout none: none-seed0 failed, see log.txt\n")
    assert "| resnet |" in table and "| none |  |" not in table and measured == [1]

    for file in (root / "resnet-seed0").glob("*.pth"):
        file.unlink()
    tool.main([*argv, "--work-dir", "out"])
    monkeypatch.setattr(tool, "train_and_test", Mock())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        tool.main(with_another)
    message = f"error: the run in {Path('out', 'resnet-seed0')} is finished, and its checkpoint"
    assert capsys.readouterr().err.startswith(message) and not tool.train_and_test.called


def test_a_backbone_that_fails_is_left_out_with_all_its_seeds(tmp_path, monkeypatch):
    called = []

    def result_of(run, *_):
        called.append(run.directory)
        if run.name == "x":
            raise RunFailed(f"{run.directory} failed")
        return result(0.5, 0.5)

    monkeypatch.setattr(tool, "result_of", result_of)
    runs = {name: [Run(name, "p.py", {}, seed) for seed in range(2)] for name in "xy"}
    results, failed = tool.train_and_test(runs, tmp_path)
    assert results == {"y": [result(0.5, 0.5)] * 2}
    assert {name: str(error) for name, error in failed.items()} == {"x": "x-seed0 failed"}
    assert called == ["x-seed0", "y-seed0", "y-seed1"]


def test_when_all_fail_there_is_no_table(tmp_path, capsys, monkeypatch):
    """The process of a run knows no such program, whatever the run."""
    monkeypatch.setattr(tool, "__file__", str(tmp_path / "missing.py"))
    argv = [str(CONFIGS / "shapes_compare.py"), "a=scratch", "--work-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        tool.main(argv)
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: a-seed0 failed, see ")
    assert not list(tmp_path.glob("comparison*"))


def test_the_tool_says_what_is_wrong_before_it_trains(tmp_path, capsys):
    config, root = str(CONFIGS / "shapes_compare.py"), tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        tool.main([config, "a=nowhere.pt", "--work-dir", str(root)])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: checkpoint not found: nowhere.pt\n"
    assert not root.exists()
    (root / "a-seed0").mkdir(parents=True)
    (root / "a-seed0" / "run.py").write_text("other = True")
    with pytest.raises(SystemExit) as left:
        tool.main([config, "a=scratch", "--work-dir", str(root)])
    assert left.value.code == 2
    assert "a-seed0 holds a run of other settings or weights" in capsys.readouterr().err
