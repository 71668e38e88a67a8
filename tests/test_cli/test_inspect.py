"""`ropevit inspect` and `ropevit weights`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ropevit_mmdet import RoPEViT, load_classifier
from ropevit_mmdet.weights.other_architectures import TIMM
from ropevit_mmdet.weights.published import WEIGHTS
from tests.commands import ropevit
from tests.oracle import birder_net, fill, write_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pytest.importorskip("birder")
    net = birder_net("rope_vit_reg1_t14", size=(70, 70))
    return write_checkpoint(net, tmp_path_factory.mktemp("tiny"))


def test_inspect_prints_lines_and_classes(tiny, tmp_path, capsys):
    values = np.random.RandomState(0).randint(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    ropevit("inspect", tiny, "--image", tmp_path / "image.png")
    printed = capsys.readouterr().out
    assert "architecture  rope_vit_reg1_t14\n" in printed
    assert '        arch="rope_vit_reg1_t14",\n' in printed
    net = load_classifier(tiny)
    best = net.probabilities(net.preprocess(tmp_path / "image.png"))[0].argsort(descending=True)
    shown = [line.split() for line in printed.split("image.png\n")[1].splitlines()]
    assert [name for _, name in shown] == [net.class_names[i] for i in best[:5]]


def test_inspect_detector(tmp_path, capsys):
    state = fill(RoPEViT("rope_vit_reg1_t14", pretrain_img_size=70)).state_dict()
    torch.save(dict(state_dict={f"backbone.{k}": v for k, v in state.items()}), tmp_path / "a.pth")
    ropevit("inspect", tmp_path / "a.pth")
    printed = capsys.readouterr().out
    assert "written by    mmengine\n" in printed and "model = dict(" not in printed


def test_inspect_timm(tmp_path, capsys):
    """A file of timm with its config.json: everything that a config needs."""
    name = "vit_tiny_patch16_dinov3_qkvb"
    state = {f"{k[:-9]}gamma_{k[-7]}" if k.endswith("gamma") else k: v
             for k, v in RoPEViT(name).state_dict().items()}  # fmt: skip
    save_file(state, tmp_path / "model.safetensors")
    stats = dict(mean=[0.43, 0.411, 0.296], std=[0.213, 0.156, 0.143])
    config = json.dumps(dict(architecture=name, pretrained_cfg=stats))
    (tmp_path / "config.json").write_text(config)
    assert ropevit("inspect", tmp_path / "model.safetensors") == 0
    printed = capsys.readouterr().out
    assert f"architecture  {name}\n" in printed and "written by    timm\n" in printed
    assert f'        arch="{name}",\n        pretrain_img_size=256,\n' in printed
    assert "        window_size=16,\n" in printed and "mean=[109.65, " in printed


def test_weights_lists_timm(capsys):
    assert ropevit("weights", "nothing", "--source", "timm") == 2
    assert ropevit("weights", "--source", "timm") == 0
    assert capsys.readouterr().out.count(" pixels ") == len(TIMM) == 51


def test_weights_lists_and_filters(cache, capsys):
    assert ropevit("weights") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    name = "rope_vit_reg4_b14_capi-places365"
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(WEIGHTS) < set(rows)
    assert rows[name].split() == [name, "224", "328.1", "CAPI,", "then", "Places365"]
    assert ropevit("weights", "PE-core") == 0
    assert capsys.readouterr().out.count("Perception Encoder, core") == 3
    assert ropevit("weights", "nothing") == 2
