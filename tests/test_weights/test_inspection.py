"""What a checkpoint is said to be: names that fit, facts, lines to paste, the tool that prints."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_colors, check_strides
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier
from ropevit_mmdet.weights.architectures import arch_names, names_of, resolve_arch
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.identify import fitting_archs, summary
from ropevit_mmdet.weights.inspection import choose_archs, config_lines, facts
from tests.oracle import SMALL, birder_net, fill, write_checkpoint

ROOT = Path(__file__).parents[2]
CUT = dict(num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=48)


def load_tool():
    spec = importlib.util.spec_from_file_location(
        "inspect_checkpoint", ROOT / "tools" / "inspect_checkpoint.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def written(directory, name, config=None, size=(70, 70), **arguments):
    pytest.importorskip("birder")
    net = birder_net(name, config, size=size, **arguments)
    return write_checkpoint(net, directory, config=config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny"), "rope_vit_reg1_t14")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """What mmengine saves of a detector, as far as the backbone and the notes go."""
    state = fill(RoPEViT("rope_vit_reg1_t14", pretrain_img_size=70)).state_dict()
    state = {f"backbone.{key}": value for key, value in state.items()}
    state["neck.convs.0.weight"] = torch.zeros(3)
    meta = dict(epoch=3, iter=1200, mmengine_version="0.10.7")
    meta["dataset_meta"] = dict(classes=("disc", "ring"), palette=[(0, 0, 0), (1, 1, 1)])
    path = tmp_path_factory.mktemp("detector") / "epoch_3.pth"
    torch.save(dict(state_dict=state, meta=meta), path)
    return path


@pytest.mark.parametrize("name", arch_names())
def test_every_architecture_is_among_those_that_fit(tmp_path, name):
    side = 5 * resolve_arch(name).patch_size
    path = written(tmp_path, name, CUT, (side, side))
    fitting = fitting_archs(read_checkpoint(path))
    assert name in fitting
    assert fitting[name].num_layers == 2 and fitting[name].hidden_dim == 64


def test_overrides_in_the_file_count(tmp_path):
    override = dict(rope_temperature=50.0)
    path = written(tmp_path, "rope_vit_reg1_t14", override)
    (arch,) = fitting_archs(read_checkpoint(path)).values()
    assert arch.rope_temperature == 50.0 and not names_of(arch)


def test_the_summary_says_what_and_what_not(tiny, detector):
    checkpoint = read_checkpoint(tiny)
    first, second, third = summary(checkpoint, checkpoint.state).splitlines()
    assert str(tiny) in first and "birder v0.8.4" in first
    assert f"{len(checkpoint.state)} tensors of rope_vit_reg1_t14" in first
    assert "70 x 70 pixels" in second and "mean (0.5191, 0.5306, 0.4877)" in second
    assert third.strip() == "ignored: classifier"
    cut = [key for key in checkpoint.state if not key.startswith(("blocks.11.", "norm."))]
    assert summary(checkpoint, cut).endswith("ignored: blocks.11, norm, classifier")
    checkpoint = read_checkpoint(detector)
    first, second = summary(checkpoint, checkpoint.state).splitlines()
    assert "(mmengine)" in first and "rope_vit_reg1_t14" in first
    assert second.strip() == "ignored: nothing"


def test_facts_of_a_birder_file(tiny):
    checkpoint = read_checkpoint(tiny)
    lines = [line for _, line in facts(checkpoint, choose_archs(checkpoint, None))]
    assert lines[0] == f"{tiny}, {tiny.stat().st_size / 2**20:.1f} MB"
    assert lines[1:4] == [
        "birder v0.8.4",
        "rope_vit_reg1_t14",
        "12 blocks of 192 channels, patches of 14 pixels, 1 register and a class token",
    ]
    assert lines[4].endswith("float32, all finite")
    assert lines[5] == "by detectors: classifier, 1,351 parameters"
    assert lines[6] == "70 x 70 pixels"
    assert lines[8] == "7: class_0, class_1, class_2, class_3, ..."


def test_facts_of_a_detector(detector):
    checkpoint = read_checkpoint(detector)
    lines = dict(facts(checkpoint, choose_archs(checkpoint, None)))
    assert lines["written by"] == (
        "mmengine 0.10.7, a training run after 3 epochs, 1200 iterations"
    )
    assert lines["architecture"] == "rope_vit_reg1_t14"
    assert lines["classes"] == "2: disc, ring"
    with pytest.raises(ValueError, match="not of rope_vit_t16, but of rope_vit_reg1_t14"):
        choose_archs(checkpoint, "rope_vit_t16")


def test_weights_that_are_dead_are_seen(tiny, tmp_path):
    content = torch.load(tiny, weights_only=True)
    content["state"]["pos_embedding"][0, 3, 5] = float("nan")
    torch.save(content, tmp_path / "dead.pt")
    checkpoint = read_checkpoint(tmp_path / "dead.pt")
    lines = dict(facts(checkpoint, choose_archs(checkpoint, None)))
    assert "1 TENSORS HOLD NaN" in lines["backbone"]


def test_what_weights_cannot_tell_is_chosen_by_name(tmp_path):
    path = written(tmp_path, "rope_a_vit_s16", CUT, (80, 80))
    checkpoint = read_checkpoint(path)
    assert list(choose_archs(checkpoint, None)) == ["rope_vit_t16", "rope_a_vit_s16"]
    assert list(choose_archs(checkpoint, "rope_a_vit_s16")) == ["rope_a_vit_s16"]
    with pytest.raises(ValueError, match="holds another architecture"):
        choose_archs(checkpoint, "rope_vit_t14")


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("rope_vit_reg1_t14", None, (70, 70)),
        ("rope_vit_t16", dict(rope_temperature=50.0), (96, 96)),
        ("rope_vit_t32", None, (160, 160)),
        ("rope_vit_reg8_so150m_p14_swiglu_rms_aps", CUT, (84, 56)),
    ],
)
def test_the_lines_to_paste_make_a_detector_that_loads(tmp_path, name, config, size):
    path = written(tmp_path, name, config, size)
    checkpoint = read_checkpoint(path)
    arch = choose_archs(checkpoint, name)[name]
    lines = config_lines(checkpoint, arch, str(path))
    pasted = tmp_path / "pasted.py"
    pasted.write_text(f'_base_ = "{ROOT}/configs/ropevit_maskrcnn.py"\n{lines}\n')
    config = Config.fromfile(pasted)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    model.backbone.init_weights()
    check_strides(model)
    check_colors(model)
    assert config.model.data_preprocessor.pad_size_divisor == 4 * arch.patch_size
    maps = model.backbone(torch.zeros(1, 3, 8 * arch.patch_size, 8 * arch.patch_size))
    assert model.neck(maps)[2].shape[-2:] == (8, 8)


def test_the_tool_prints_facts_lines_and_classes(tiny, tmp_path, capsys):
    values = np.random.RandomState(0).randint(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    load_tool().main([str(tiny), "--image", str(tmp_path / "image.png")])
    printed = capsys.readouterr().out
    assert "architecture  rope_vit_reg1_t14\n" in printed
    assert '        arch="rope_vit_reg1_t14",\n' in printed
    net = load_classifier(tiny)
    best = net.probabilities(net.preprocess(tmp_path / "image.png"))[0].argsort(descending=True)
    shown = [line.split() for line in printed.split("image.png\n")[1].splitlines()]
    assert [name for _, name in shown] == [net.class_names[i] for i in best[:5]]


def test_the_tool_says_what_a_detector_is(detector, capsys):
    load_tool().main([str(detector)])
    printed = capsys.readouterr().out
    assert "a training run after 3 epochs" in printed and "model = dict(" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "checkpoint not found: nowhere.pt"),
        (["birder://rope_vit_reg4_b14"], "birder publishes no RoPE ViT of that name"),
        (["{tiny}", "--arch", "rope_vit_t14"], "set arch='rope_vit_reg1_t14'"),
        (["{tiny}", "--image", "nowhere.jpg"], "image not found: nowhere.jpg"),
        (["{detector}", "--image", "x.jpg"], "is no classifier"),
        (["{resnet}"], "holds no weights of a RoPE ViT"),
    ],
)
def test_the_tool_says_what_is_wrong_in_one_line(
    tiny, detector, tmp_path, capsys, arguments, message
):
    resnet = tmp_path / "resnet.pth"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(4, 3, 7, 7)}}, resnet)
    arguments = [a.format(tiny=tiny, detector=detector, resnet=resnet) for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        load_tool().main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_an_architecture_without_a_name_gets_no_lines(tmp_path, capsys):
    path = written(tmp_path, "rope_vit_reg4_b14", SMALL)
    content = torch.load(path, weights_only=True)
    del content["config"]
    torch.save(content, path)
    load_tool().main([str(path)])
    printed = capsys.readouterr().out
    assert "none that has a name" in printed and "no config lines" in printed
