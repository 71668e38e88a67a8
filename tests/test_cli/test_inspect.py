"""`ropevit inspect` and `ropevit weights`."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ropevit_cli import inspect, weights
from ropevit_mmdet import RoPEViT, load_classifier
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.published import WEIGHTS
from tests.oracle import birder_net, fill, write_checkpoint


def run(command, *argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(map(str, argv))))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pytest.importorskip("birder")
    net = birder_net("rope_vit_reg1_t14", size=(70, 70))
    return write_checkpoint(net, tmp_path_factory.mktemp("tiny"))


def test_inspect_prints_lines_and_classes(tiny, tmp_path, capsys):
    values = np.random.RandomState(0).randint(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    run(inspect, tiny, "--image", tmp_path / "image.png")
    printed = capsys.readouterr().out
    assert "architecture  rope_vit_reg1_t14\n" in printed
    assert '        arch="rope_vit_reg1_t14",\n' in printed
    net = load_classifier(tiny)
    best = net.probabilities(net.preprocess(tmp_path / "image.png"))[0].argsort(descending=True)
    shown = [line.split() for line in printed.split("image.png\n")[1].splitlines()]
    assert [name for _, name in shown] == [net.class_names[i] for i in best[:5]]


def test_inspect_detector(tmp_path, capsys):
    state = fill(RoPEViT("rope_vit_reg1_t14", pretrain_img_size=70)).state_dict()
    path = tmp_path / "epoch_3.pth"
    torch.save(dict(state_dict={f"backbone.{k}": v for k, v in state.items()}), path)
    run(inspect, path)
    printed = capsys.readouterr().out
    assert "written by    mmengine\n" in printed and "model = dict(" not in printed
    torch.save(dict(state_dict={"backbone.conv1.weight": torch.zeros(4, 3, 7, 7)}), path)
    with pytest.raises(UserError, match="no weights of a RoPE ViT"):
        run(inspect, path)


def test_weights_lists_and_filters(cache, capsys):
    assert run(weights) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    name = "rope_vit_reg4_b14_capi-places365"
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(WEIGHTS) < set(rows)
    assert rows[name].split() == [name, "224", "328.1", "CAPI,", "then", "Places365"]
    assert run(weights, "--json", "PE-core") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == [name for name in WEIGHTS if "pe-core" in name]
    assert listed[0]["url"] == WEIGHTS[listed[0]["name"]].url and not listed[0]["downloaded"]
    assert run(weights, "nothing") == 2
