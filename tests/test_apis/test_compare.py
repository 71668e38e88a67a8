"""Comparison of backbones: variants as overrides of a base config, costs, the command."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import Image

from ropevit_mmdet.apis.benchmark import measure
from ropevit_mmdet.apis.compare import check_base, cost, experiment, parse_variants
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_feature_maps
from tests import oracle
from tests.commands import fails, ropevit
from tests.test_apis.test_compare_report import COST
from tests.tiny_coco import write_python_style, write_tiny

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = CONFIGS / "shapes_compare.py"
RESNET = f"resnet={CONFIGS / 'backbones' / 'resnet18.py'}"
SEVERAL = "model = dict(backbone=dict(type='ResNet', depth=18, out_indices=(1, 2, 3))"
FPN = "neck=dict(type='FPN', in_channels=[128, 256, 512], out_channels=64, num_outs=3)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Written by birder, of a named architecture."""
    pytest.importorskip("birder")
    net = oracle.birder_net("rope_vit_t14", None)
    return oracle.write_checkpoint(net, tmp_path_factory.mktemp("checkpoint"), "net")


@pytest.fixture
def base():
    return load_config(BASE)


def write_rope_vit(directory):
    """The tiny config with a RoPE ViT that detects nothing."""
    path = write_tiny(directory)
    text = path.read_text().replace("strides=[16, 32]", "strides=[14, 28]")
    parts = (
        "    backbone=dict(type='RoPEViT', pretrain_img_size=56, arch=dict(patch_size=14,"
        " num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)),\n"
        "    neck=dict(type='SimpleFeaturePyramid', in_channels=32, out_channels=16,"
        " scale_factors=(1, 0.5), num_outs=2),\n"
    )
    start, end = text.index("    backbone="), text.index("    bbox_head=")
    text = text[:start] + parts + text[end:]
    path.write_text(text.replace("score_thr=0.0", "score_thr=0.99"))
    return path


def derived(base, spec):
    """The config of a variant."""
    (config,) = parse_variants([spec], base).values()
    return config


def detector(base, spec):
    """The config of a variant and its detector, after a forward pass."""
    config = derived(base, spec)
    model = build_detector(config).eval()
    maps = model.extract_feat(torch.zeros(1, 3, 224, 224))
    assert [224 / level.shape[-1] for level in maps] == list(model.neck.strides) == [7, 14, 28]
    return config, model


def test_a_checkpoint_sets_architecture_statistics_and_window(base, checkpoint):
    config, model = detector(base, f"ours={checkpoint}")
    backbone = config.model.backbone
    assert backbone.arch == "rope_vit_t14" and backbone.init_cfg.checkpoint == str(checkpoint)
    expected = [round(255 * value, 4) for value in oracle.RGB_STATS["mean"]]
    assert config.model.data_preprocessor.mean == expected
    model.backbone.init_weights()  # strict: the architecture is right
    assert config.train_cfg == base.train_cfg and config.model.rpn_head == base.model.rpn_head


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(rope_interpolation=224), 224),
        (dict(rope_interpolation=448), 448),
        (dict(arch="rope_vit_t14", pretrain_img_size=112), 448 * 2),
        (dict(arch="rope_vit_t16", pretrain_img_size=112), 448 / 16 / 7 * 224),
        (dict(rope_interpolation="none"), "none"),
    ],
)
def test_rope_interpolation_keeps_the_angle_per_patch(base, checkpoint, changes, expected):
    """The base config gives it in pixels, for the grid of its own weights."""
    base.model.backbone.update({"rope_interpolation": 448} | changes)
    backbone = derived(base, f"ours={checkpoint}").model.backbone
    assert backbone.rope_interpolation == expected and backbone.window_size == 16


@pytest.mark.parametrize(
    ("name", "settings", "side"),
    [
        ("rope_vit_t16", None, 224),
        ("rope_vit_t14", {"pt_grid_size": (8, 8), "num_reg_tokens": 2}, 224),
        ("rope_vit_t14", None, 112),
    ],
    ids=["another patch", "overridden by the file", "a file without its image size"],
)
def test_checkpoints_of_other_architectures_keep_angle_and_window(
    base, tmp_path, name, settings, side
):
    """Whatever grid the coordinates are scaled to; a position embedding shows the image size."""
    net = oracle.birder_net(name, settings, size=(side, side))
    path = oracle.write_checkpoint(net, tmp_path, "net", config=settings)
    if side == 112:
        content = torch.load(path)
        del content["signature"]
        torch.save(content, path)
    base.model.backbone.window_size = 4
    config = derived(base, f"ours={path}")
    backbone = build_detector(config).backbone
    backbone.init_weights()  # strict: the architecture is right
    assert config.model.backbone.rope_interpolation == backbone.pretrain_img_size[0] == side
    assert config.model.backbone.window_size == side // backbone.arch.patch_size
    assert backbone.arch.num_reg_tokens == (2 if settings else 0)


def test_scratch_has_neither_weights_nor_layer_decay(base):
    config, _ = detector(base, "none=scratch")
    assert config.model.backbone.init_cfg is None
    assert config.optim_wrapper.paramwise_cfg.layer_decay_rate == 1.0
    assert config.model.backbone.arch == base.model.backbone.arch


def test_variants_of_a_frozen_base_are_frozen(base, checkpoint):
    frozen = load_config(CONFIGS / "shapes_frozen.py")
    for spec in (f"ours={checkpoint}", RESNET, "none=scratch"):
        model = build_detector(derived(frozen, spec))
        assert type(model.backbone).__name__ == "FrozenBackbone"
        assert not any(p.requires_grad for p in model.backbone.parameters())
    base.model.backbone.frozen_stages = 6
    assert derived(base, RESNET).model.backbone.type == "FrozenBackbone"


def test_variants_of_a_base_that_fuses_feature_maps(base, checkpoint):
    base.model.backbone.out_indices = [0, 2, 3, 5]
    base.model.neck.update(in_channels=[128] * 4, fuse="concat")
    config, model = detector(base, f"ours={checkpoint}")  # 12 blocks instead of 6
    assert model.backbone.out_indices == (1, 5, 7, 11)
    assert config.model.neck.in_channels == [model.backbone.arch.hidden_dim] * 4
    check_feature_maps(model)
    config, model = detector(base, RESNET)
    assert config.model.neck.in_channels == 256 and model.neck.fusion is None


def test_invalid_variants_and_unsuitable_base_configs_are_errors(base):
    for specs in (["nothing"], ["a=scratch", "a=scratch"], ["_a=scratch"], ["a=missing.py"]):
        with pytest.raises(ValueError, match=f"{specs[0]}.*give NAME=CHECKPOINT|config missing"):
            parse_variants(specs, base)
    check_base(base)
    for part in (base.model.neck, base.test_evaluator):
        part.type, before = "Other", part.type
        with pytest.raises(ValueError, match="base config needs a RoPEViT, a SimpleFeaturePyramid"):
            check_base(base)
        part.type = before
    base.load_from = "detector.pth"
    with pytest.raises(ValueError, match="'detector.pth', which would replace the weights of ev"):
        check_base(base)


def test_several_feature_maps_need_a_neck_that_fits_the_heads(base, tmp_path):
    path = tmp_path / "several.py"
    path.write_text(f"{SEVERAL})")
    with pytest.raises(ValueError, match="ResNet makes feature maps .* set one out_index"):
        parse_variants([f"a={path}"], base)
    path.write_text(f"{SEVERAL}, {FPN})")
    with pytest.raises(ValueError, match=r"or a model.neck of strides \[7, 14, 28\]"):
        parse_variants([f"a={path}"], base)
    base.model.neck.update(out_strides=(8, 16, 32))
    neck = derived(base, f"a={path}").model.neck
    assert neck.type == "FPN" and "in_stride" not in neck


def test_python_style_configs_are_those_of_strings(tmp_path):
    """The text of a run names the classes."""
    base = load_config(write_python_style(write_rope_vit(tmp_path), tmp_path / "style.py"))
    check_base(base)
    for name, variant in parse_variants(["none=scratch", RESNET], base).items():
        (tmp_path / "run.py").write_text(experiment._settings(experiment.Run(name, variant)))
        config = Config.fromfile(tmp_path / "run.py")
        expected = "RoPEViT" if name == "none" else "ResNet"
        assert type(build_detector(config).backbone).__name__ == expected
        assert type_name(config.test_evaluator) == "CocoMetric"


def test_imports_of_a_variant_are_part_of_its_runs(base, tmp_path):
    """They may register its backbone."""
    path = tmp_path / "users.py"
    backbone = "dict(type='ResNet', depth=18, out_indices=(1,))"
    path.write_text(f"custom_imports = dict(imports='colorsys')\nmodel = dict(backbone={backbone})")
    imports = dict(imports=["ropevit_mmdet", "colorsys"], allow_failed_imports=False)
    assert derived(base, f"a={path}").custom_imports == imports


def test_a_feature_map_of_stride_32_is_resampled_to_the_strides_of_a_coco_config(tmp_path):
    """The neck's layers make 8 at most, the finest stride is 3.5."""
    path, base = tmp_path / "resnet.py", load_config(CONFIGS / "ropevit_maskrcnn.py")
    path.write_text("model = dict(backbone=dict(type='ResNet', depth=18, out_indices=(3,)))")
    neck = MODELS.build(derived(base, f"a={path}").model.neck)
    assert neck.own_strides == (8, 8, 16, 32, 64)
    with torch.no_grad():
        maps = neck(torch.zeros(1, 512, 28, 28))
    assert [896 / level.shape[-1] for level in maps] == [3.5, 7, 14, 28, 56]


@pytest.fixture
def comparison(tmp_path, checkpoint, monkeypatch):
    """The command line of a comparison so short that no object is detected, and its directory."""
    # Not in new processes, which test_experiment.py covers: their imports take seconds.
    monkeypatch.setattr(experiment, "_start", experiment.execute)
    monkeypatch.setattr(experiment, "_end_with_input", lambda: None)
    monkeypatch.setattr(measure, "in_new_process", lambda function, *args: function(*args))
    monkeypatch.setattr(cost, "IMAGES", 1)
    config = write_rope_vit(tmp_path)
    annotations = tmp_path / "data" / "annotations.json"
    with config.open("a") as file:
        file.write(
            "test_evaluator = dict(type='CocoMetric', ann_file='nowhere.json', metric='bbox')\n"
            "train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=1)\n"
            "default_hooks['logger'] = dict(type='LoggerHook', interval=1)\n"
        )
    argv = ["compare", config, f"ours={checkpoint}", RESNET, "--seeds", "1"]
    argv += ["--work-dir", tmp_path / "out"]
    return [*argv, "--cfg-options", f"test_evaluator.ann_file={annotations}"], tmp_path / "out"


def test_the_command_compares_and_continues(comparison, monkeypatch, capsys):
    argv, root = comparison
    assert ropevit(*argv) == 0
    errors = capsys.readouterr().err
    assert "1 of 2 runs done" in errors and errors.count("running, log in") == 2
    rows = json.loads((root / "comparison.json").read_text())
    assert [(row["name"], row["seeds"]) for row in rows] == [("ours", 1), ("resnet", 1)]
    for row in rows:
        assert row["costs"].keys() == COST.keys() | {"training, s"}
        assert row["costs"]["images/s"] > 0 and row["costs"]["GFLOP"] > 0
        assert row["AP"]["box AP"] == [0.0, 0.0]
    for name in ("ap_over_latency.png", "learning_curves.png"):
        with Image.open(root / name) as image:
            assert min(image.size) > 300

    monkeypatch.setattr("ropevit_mmdet.apis.compare.measure_costs", lambda *_: [COST, COST])
    monkeypatch.setattr(experiment, "_start", lambda directory: 1)
    with_another = [*argv[:2], "none=scratch", *argv[2:]]
    assert ropevit(*with_another) == 1  # keeps the results of the others
    errors = capsys.readouterr().err
    assert errors.count("running, log in") == 1 and "1 of 3 backbones failed: none" in errors
    table = (root / "comparison.md").read_text()
    assert table.endswith(f"\nWithout none: none-seed0 failed, see {root}/none-seed0/log.txt\n")
    assert "| resnet |" in table and "| none |  |" not in table

    for file in (root / "resnet-seed0").glob("*.pth"):
        file.unlink()
    line = fails(capsys, *with_another)
    assert f"{root / 'resnet-seed0'} has a finished run without its checkpoint" in line


def test_the_command_checks_sources_and_directories_first(tmp_path, capsys):
    root = tmp_path / "out"
    argv = ["compare", write_rope_vit(tmp_path), "--work-dir", root]
    assert "nowhere.pt" in fails(capsys, *argv, "a=nowhere.pt")
    gone = ["--cfg-options", "val_dataloader.dataset.ann_file=gone.json"]
    assert "gone.json does not exist" in fails(capsys, *argv, "a=scratch", *gone)
    assert not root.exists()
    (root / "a-seed0").mkdir(parents=True)
    (root / "a-seed0" / "run.py").write_text("other = True")
    line = fails(capsys, *argv, "b=scratch", "a=scratch")
    assert "a-seed0 has a run of other settings or weights" in line
    assert not (root / "b-seed0").exists()
