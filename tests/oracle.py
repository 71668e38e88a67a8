"""birder as the oracle of the tests: its networks, its checkpoint files, its maps.

Weights come from numpy's frozen RandomState, seeded by the parameter's name, so that the
committed goldens can be checked without birder.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RGB_STATS = {"mean": (0.5191, 0.5306, 0.4877), "std": (0.2316, 0.2304, 0.2588)}
SMALL = dict(
    patch_size=14,
    num_layers=4,
    num_heads=2,
    hidden_dim=32,
    mlp_dim=96,
    drop_path_rate=0.0,
    num_reg_tokens=4,
)


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor that is the same on every machine: norms near 1, the rest near 0."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    tensor = torch.from_numpy(np.asarray(values, dtype=np.float32))
    is_scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma"))
    return 1 + 0.1 * tensor if is_scale else 0.2 * tensor


def seeded_images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def fill(net: nn.Module) -> nn.Module:
    """Gives every parameter and every running statistic of a network its seeded values."""
    for name, value in net.state_dict(keep_vars=True).items():
        if name.endswith("running_var"):
            value.data.fill_(1.5)
        elif value.is_floating_point():
            value.data.copy_(seeded(name, tuple(value.shape)))
    return net


def birder_net(
    name: str = "rope_vit_reg4_b14",
    config: dict[str, Any] | None = None,
    *,
    size: tuple[int, int] = (224, 224),
    num_classes: int = 7,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """A network of birder with seeded weights, for any input size, in eval mode."""
    import birder.net  # noqa: F401  (registers the networks)
    from birder.model_registry import registry

    net = registry.net_factory(name, num_classes, config=config, size=size)
    net.set_dynamic_size()
    return fill(net).eval().to(dtype)


def write_checkpoint(
    net: nn.Module, directory: Path, name: str = "net", *, config: dict[str, Any] | None = None
) -> Path:
    """A float32 checkpoint file, written by birder's own function."""
    from birder.common import fs_ops
    from birder.net.base import get_signature

    models_dir, fs_ops.settings.MODELS_DIR = fs_ops.settings.MODELS_DIR, directory
    dtype = next(net.parameters()).dtype
    try:
        fs_ops.checkpoint_model(
            name,
            0,
            net.float(),
            get_signature((1, 3, *net.size), net.num_classes),
            {f"class_{i}": i for i in range(net.num_classes)},
            RGB_STATS,
            None,
            None,
            None,
            None,
            external_config=config,
        )
        return fs_ops.model_path(name, epoch=0)
    finally:
        net.to(dtype)
        fs_ops.settings.MODELS_DIR = models_dir


def write_safetensors(
    net: nn.Module, directory: Path, name: str = "net", *, config: dict[str, Any] | None = None
) -> Path:
    """The same as safetensors, written by birder's own function."""
    from birder.common import fs_ops
    from birder.net.base import get_signature

    path, dtype = directory / f"{name}.safetensors", next(net.parameters()).dtype
    fs_ops.save_st(
        net.float(),
        str(path),
        net.task,
        {f"class_{i}": i for i in range(net.num_classes)},
        get_signature((1, 3, *net.size), net.num_classes),
        RGB_STATS,
        external_config=config,
    )
    net.to(dtype)
    return path


def birder_map(net: nn.Module, images: Tensor, *, final_norm: bool) -> Tensor:
    """birder's detection map: `stage1`, with the encoder's norm if `final_norm`."""
    with torch.no_grad():
        stage = net.detection_features(images)["stage1"]
        if final_norm:
            stage = net.norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return stage


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |a - b| over max |b|."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()
