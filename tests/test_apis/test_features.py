"""Sources of features: birder checkpoints and detectors with their preprocessing, the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ropevit_mmdet._images import InputImage, read_image
from ropevit_mmdet.apis.features import image_features, load_features
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.visualization import block_features
from tests import oracle
from tests.commands import fails, ropevit
from tests.tiny_coco import write_tiny


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_the_command_on_a_birder_checkpoint(tmp_path, image, capsys):
    pytest.importorskip("birder")
    config = dict(oracle.SMALL)
    net = oracle.birder_net("rope_vit_reg4_b14", config, size=(56, 56))
    checkpoint = oracle.write_checkpoint(net, tmp_path)
    out, arch = tmp_path / "out" / "a.png", ["--arch", json.dumps(config)]
    argv = ["features", checkpoint, image, image.parent / "*.png", "--out", out, *arch]
    ropevit(*argv, "--blocks", "0", "-1", "--size", "112")
    with Image.open(out) as figure:
        assert figure.format == "PNG" and min(figure.size) > 200
    source = load_features(str(checkpoint), arch=config, size=112, device="cpu")
    inputs, shown = source.prepare(read_image(image))
    assert inputs.shape == (1, 3, 70, 112) and shown.shape == (70, 112, 3)  # 5 x 8 patches
    mean, std = (torch.tensor(oracle.RGB_STATS[key]).view(3, 1, 1) for key in ("mean", "std"))
    back = inputs[0] * std + mean
    torch.testing.assert_close(back, torch.tensor(shown).permute(2, 0, 1) / 255)
    content = torch.load(checkpoint)
    del content["signature"]  # the position embedding shows the image size, too
    torch.save(content, tmp_path / "bare.pt")
    bare = load_features(str(tmp_path / "bare.pt"), arch=config, device="cpu")
    assert bare.backbone.pretrain_img_size == (56, 56)
    capsys.readouterr()  # birder prints
    for options, message in (
        (["--patch", "5", "0", "--size", "112"], "got blocks [-1] and patch 5 0"),
        (["--blocks", "4"], "the backbone has blocks 0 to 3"),
        (["--blocks", *["0"] * 49], "1 images x 49 blocks are too many for a figure: give 48"),
        (["--out", "a.jpg"], "must end in .png"),
    ):
        assert message in fails(capsys, *argv, *options)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_images_of_a_detector_go_through_its_pipeline(tmp_path, image, bgr_to_rgb):
    config = load_config(write_tiny(tmp_path))
    settings = dict(oracle.SMALL, hidden_dim=16, mlp_dim=32)
    config.model.backbone = dict(type="RoPEViT", arch=settings, pretrain_img_size=56,
                                 window_size=2, out_indices=(1, 3))  # fmt: skip
    config.model.neck.in_channels = [16, 16]
    config.model.data_preprocessor.bgr_to_rgb = bgr_to_rgb
    model = build_detector(config)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "tiny.pth")
    source = load_features(str(tmp_path / "tiny.pth"), config, device="cpu")
    pixels = read_image(image)
    inputs, shown = source.prepare(pixels)
    assert inputs.shape == (1, 3, 64, 64) and shown.shape == (64, 64, 3)  # 43 x 64, padded
    small = np.asarray(Image.fromarray(pixels).resize((64, 43), Image.Resampling.BILINEAR))
    by_channel = [np.corrcoef(small[..., i].flat, shown[:43, :, i].flat)[0, 1] for i in range(3)]
    crossed = np.corrcoef(small[..., 0].flat, shown[:43, :, 2].flat)[0, 1]
    assert min(by_channel) > 0.6 > crossed + 0.3  # red stays red
    with pytest.raises(ValueError, match=r"image thin\.png is more than 100 times as long as wide"):
        image_features(source, [InputImage("thin.png", np.zeros((1, 300, 3), np.uint8))])
    features = block_features(source.backbone, inputs)
    assert features[0].patches.shape == (5, 5, 16) and not features[0].windowed

    wrapper = dict(type="FrozenBackbone", backbone=config.model.backbone)
    config.model.backbone = dict(wrapper, cache_dir=str(tmp_path / "maps"))
    frozen = load_features(str(tmp_path / "tiny.pth"), config, device="cpu")
    same = block_features(frozen.backbone, frozen.prepare(pixels)[0])
    torch.testing.assert_close(same[0].patches, features[0].patches, rtol=0, atol=0)
    assert not (tmp_path / "maps").exists()

    config = load_config(write_tiny(tmp_path / "resnet"))
    torch.save({"state_dict": build_detector(config).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="backbone is a ResNet, not a RoPEViT"):
        load_features(str(tmp_path / "other.pth"), config)
    with pytest.raises(ValueError, match="contains no config: pass one"):
        load_features(str(tmp_path / "tiny.pth"))
