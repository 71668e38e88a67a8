"""Sound files of odd weights and metadata: one line that names the file, whatever reads them."""

import json
import struct
from types import SimpleNamespace

import pytest
import torch

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.deploy.publish import publish
from ropevit_mmdet.errors import user_message
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier
from tests.malformed_files import HERE, saved_with
from tests.oracle import SMALL, birder_net, write_checkpoint, write_safetensors
from tests.test_cli.test_tools import fails, load_tool

inspect = load_tool("inspect_checkpoint")
STEM, POSITIONS, REGISTERS = "conv_proj.weight", "pos_embedding", "reg_tokens"
NORM, FC1, HEAD = (
    "encoder.block.0.norm1.weight",
    "encoder.block.0.mlp.0.weight",
    "classifier.weight",
)
QUERY = "encoder.block.0.attn.q_norm.weight"
TENSORS = {
    **{f"{key} of {axes} axes": (key, torch.ones((2,) * axes), f"; a RoPE ViT's has {right} axes")
       for key, right in ((STEM, 4), (POSITIONS, 3), (REGISTERS, 3), (NORM, 1), (FC1, 2), (HEAD, 2))
       for axes in (0, 1, 2) if axes != right},
    "no queries": (QUERY, torch.ones(0), "q_norm.weight is (0,); a RoPE ViT's has 1 axes, none of"),
    "a stem without a patch": (STEM, torch.ones(64, 3, 0, 0), "has 4 axes, none of 0"),
    "a block without a number": ("encoder.block.x", torch.ones(2), "gives no number of a block"),
    "a block of a long number": (f"encoder.block.{'9' * 5000}.x", torch.ones(2), "no number of a"),
    "8-bit floats": (NORM, torch.ones(2).to(torch.float8_e4m3fn), "is of torch.float8_e4m3fn: s"),
    "complex numbers": (NORM, torch.ones(2, dtype=torch.complex64), "is of torch.complex64: save"),
    "sparse numbers": (FC1, torch.eye(3).to_sparse(), "is no dense tensor of numbers"),
    "no numbers at all": (FC1, torch.ones(3, device="meta"), "is no dense tensor of numbers"),
}  # fmt: skip
FIELDS = {
    "a drop path of text": (dict(config=dict(drop_path_rate="x")), "with the file's config, "),
    "a size of none": (dict(config=dict(hidden_dim=None)), "with the file's config, "),
    "classes of mixed numbers": (dict(class_to_idx=dict(a=0, b="x")), "class_to_idx numbers no na"),
    "classes without names": (dict(class_to_idx={1: 1}), "class_to_idx numbers no names"),
    "colors beyond measure": (
        dict(rgb_stats=dict(mean=(10**400, 0, 0), std=(1, 1, 1))), "are not three means and stds"
    ),
    "colors that are none": (
        dict(rgb_stats=dict(mean=(float("nan"),) * 3, std=(1, 1, 1))), "are not three means and"
    ),
    "images beyond measure": (
        dict(signature=dict(inputs=[dict(data_shape=[1, 3, 10**9, 10**9])])), "gives no image si"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Files of one network, as torch and as safetensors."""
    pytest.importorskip("birder")
    directory, net = tmp_path_factory.mktemp("sound"), birder_net(config=SMALL, dtype=torch.float32)
    return SimpleNamespace(
        pt=write_checkpoint(net, directory), safe=write_safetensors(net, directory)
    )


def refused(path, words, capsys):
    """A model, the tool that looks into checkpoints, and a classifier refuse a file."""
    for load in (
        lambda: RoPEViT(
            SMALL, init_cfg=dict(type="Pretrained", checkpoint=str(path))
        ).init_weights(),
        lambda: load_classifier(path, SMALL),
    ):
        with pytest.raises(ValueError) as caught:
            load()
        message = user_message(caught.value)
        assert words in message and str(path) in message and "\n" not in message
    line = fails(capsys, inspect.main, path)
    assert words in line and str(path) in line and len(line) < 1000


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("case", TENSORS)
def test_odd_tensors(case, sound, tmp_path, capsys):
    key, value, words = TENSORS[case]
    content = torch.load(sound.pt, weights_only=True)
    content["state"][key] = value
    torch.save(content, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", words, capsys)


@pytest.mark.parametrize("case", FIELDS)
def test_odd_metadata(case, sound, tmp_path, capsys):
    changes, words = FIELDS[case]
    torch.save(torch.load(sound.pt, weights_only=True) | changes, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", words, capsys)


@pytest.mark.parametrize("field", ["config", "rgb_stats", "class_to_idx", "signature"])
def test_numbers_of_thousands_of_digits(field, sound, tmp_path, capsys):
    content = sound.safe.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    header["__metadata__"][field] = '{"a": ' + "9" * 5000 + "}"
    changed = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[end:])
    refused(path, f"{field} in its metadata is not JSON", capsys)


def test_a_classifier_of_other_channels(sound, tmp_path, capsys):
    """Its rows, few numbers each in the file, would be as many of the network's channels."""
    content = torch.load(sound.pt, weights_only=True)
    content["state"][HEAD] = torch.ones(10**6, 1)
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: its classifier is \(1000000, 1\), and has "):
        load_classifier(tmp_path / "odd.pt", SMALL)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("text", "its meta is 'text'"),
        ([1], "its meta is [1]"),
        (dict(dataset_meta="text"), "its dataset_meta is 'text'"),
        (dict(dataset_meta=dict(classes=3)), "its classes is 3"),
    ],
)
def test_odd_metadata_of_a_detector(meta, words, tmp_path, capsys):
    path = tmp_path / "odd.pth"
    torch.save(dict(meta=meta, state_dict={"bbox_head.w": torch.ones(2)}), path)
    for tool in ("publish_checkpoint", "inspect_checkpoint"):
        line = fails(capsys, load_tool(tool).main, path, *([tmp_path] * (tool[0] == "p")))
        assert words in line and str(path) in line
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_of_a_detector_without_end(tmp_path):
    content = dict(meta=dict(cfg=HERE), state_dict={"bbox_head.w": torch.ones(2)})
    (tmp_path / "odd.pth").write_bytes(saved_with(b"]" * 5000 + b"a" * 4999, content))
    with pytest.raises(ValueError, match=r"odd\.pth: its meta is nested without end"):
        publish(tmp_path / "odd.pth", tmp_path)


@pytest.mark.parametrize("swapped", [3, {"module.bbox_head.w": 3}, {1: torch.ones(2)}])
def test_averages_that_are_none(swapped, tmp_path):
    weights = {"bbox_head.w": torch.ones(2)}
    torch.save(dict(state_dict=weights, ema_state_dict=swapped), tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"odd\.pth: its ema_state_dict is not of mmengine's EMAHo"
    ):
        publish(tmp_path / "odd.pth", tmp_path, raw=True)
