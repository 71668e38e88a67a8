"""RoPEViT against birder, element by element, through checkpoint files that birder wrote."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ropevit_mmdet import RoPEViT
from tests.oracle import (
    SMALL,
    birder_map,
    birder_net,
    relative_error,
    seeded,
    seeded_images,
    write_checkpoint,
)

SIZES = [(224, 224), (224, 336), (518, 392), (1022, 700)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
GOLDENS = Path(__file__).parents[1] / "data" / "parity.npz"


def ours(path: Path, **arguments) -> RoPEViT:
    model = RoPEViT(**arguments, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("interpolated", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_network_equals_birder(tmp_path, dtype, size, interpolated, final_norm):
    pytest.importorskip("birder")
    config = SMALL | dict(pt_grid_size=(16, 16) if interpolated else None)
    net = birder_net(config=config, dtype=dtype)
    model = ours(
        write_checkpoint(net, tmp_path),
        arch=SMALL,
        rope_interpolation="pretrain" if interpolated else "none",
        final_norm=final_norm,
    ).to(dtype)
    images = seeded_images((1, 3, *size)).to(dtype)
    with torch.no_grad():
        (actual,) = model(images)
    assert actual.dtype == dtype
    expected = birder_map(net, images, final_norm=final_norm)
    assert relative_error(actual, expected) <= TOLERANCE[dtype]


FULL = [
    pytest.param(
        *case, marks=() if case == ((224, 336), False, torch.float64) else pytest.mark.slow
    )
    for case in itertools.product(SIZES, (False, True), TOLERANCE)
]


@pytest.mark.parametrize(("size", "interpolated", "dtype"), FULL)
def test_full_network_equals_birder(tmp_path, size, interpolated, dtype):
    pytest.importorskip("birder")
    from birder.model_registry import registry

    config = dict(registry.all_nets["rope_vit_reg4_b14"].config)
    config["pt_grid_size"] = (16, 16) if interpolated else None
    net = birder_net("rope_vit_reg4_b14", config, dtype=dtype)
    mode = "pretrain" if interpolated else "none"
    model = ours(write_checkpoint(net, tmp_path), rope_interpolation=mode).to(dtype)
    images = seeded_images((1, 3, *size)).to(dtype)
    with torch.no_grad():
        (actual,) = model(images)
    assert relative_error(actual, birder_map(net, images, final_norm=True)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", ["none", "pretrain", "raw"])
def test_goldens_of_birder(case):
    """Holds without birder: weights and images are seeded, birder's maps are committed."""
    goldens = np.load(GOLDENS)
    model = RoPEViT(
        SMALL,
        rope_interpolation="pretrain" if case == "pretrain" else "none",
        final_norm=case != "raw",
    )
    fill_under_birder_names(model)
    model.double().eval()
    for size in SIZES:
        with torch.no_grad():
            (actual,) = model(seeded_images((1, 3, *size)))
        step = int(goldens["step"])
        expected = torch.from_numpy(goldens[f"{case}_{size[0]}x{size[1]}"])
        assert relative_error(actual[..., ::step, ::step], expected) <= 1e-9


def fill_under_birder_names(model: RoPEViT) -> None:
    names = {
        "patch_embed.proj": "conv_proj",
        "pos_embed": "pos_embedding",
        "cls_token": "class_token",
        "blocks.": "encoder.block.",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    for name, parameter in model.named_parameters():
        for our_name, birder_name in names.items():
            name = name.replace(our_name, birder_name)
        parameter.data.copy_(seeded(name, tuple(parameter.shape)))
