"""Writes the tables of docs/parity.md: what was compared with birder, where, and with which error.

`python -m tests.parity_table` measures the small networks again (a minute), with `--full` the
published ones in full too (a quarter of an hour on 2 cores, 6 GB of memory). Prose and the tables
that are not measured stay.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import ropevit_mmdet  # noqa: F401  (prepares the mm stack)
from ropevit_mmdet.datasets.shapes.scene import draw_scene
from ropevit_mmdet.models.layers.patch_embed import resample_patch_kernel
from ropevit_mmdet.weights.architectures import arch_names
from tests.oracle import birder_net, write_checkpoint
from tests.parity_cases import (
    BASE,
    GRID,
    GRIDS,
    SWITCHES,
    full_errors,
    modes_of,
    pixels,
    published_networks,
    small_config,
    worst_error,
)

DOCS = Path(__file__).parents[1] / "docs" / "parity.md"
EVA02 = "bicubic, not scaled by area"
HEADER = "| {} | compared as | sizes, pixels | `rope_interpolation` | largest relative error |\n"
RULE = "|---|---|---|---|---|\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="measure the published networks too")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for their threads
    archs = [row(f"`{name}`", name, small_config(name)) for name in arch_names()]
    switches = [row(name, "rope_vit_reg4_b14", BASE | SWITCHES[name]) for name in SWITCHES]
    write("architectures", HEADER.format("architecture") + RULE + "".join(archs))
    write("switches", HEADER.format("switch") + RULE + "".join(switches))
    write("kernels", kernels())
    if arguments.full:
        torch.set_num_threads(threads)
        write("published", HEADER.format("network") + RULE + "".join(full_rows()))


def row(title: str, name: str, config: dict[str, Any]) -> str:
    pretrain, sizes = pixels(config, (GRID, GRID)), [pixels(config, grid) for grid in GRIDS]
    with tempfile.TemporaryDirectory() as directory:
        path = write_checkpoint(birder_net(name, config, size=pretrain), Path(directory))
        error = max(
            worst_error(path, config, sizes, mode=mode, name=name, pretrain=pretrain)
            for mode in modes_of(config)
        )
    return line(title, "small", sizes, modes_of(config), error)


def kernels() -> str:
    """Errors of the tokens after resampling 14 -> 16, per method."""
    methods, images = ("pinv", "bicubic", EVA02), render_images(16)
    table = f"| images scaled | kernels | {' | '.join(methods)} |\n|---|---|---|---|---|\n"
    for scaled_by in ("bilinear", "bicubic"):
        for blur in (0, 1, 2):
            torch.manual_seed(0)
            weight = kernel(blur)
            errors = (
                token_error(images, weight, 16, scaled_by=scaled_by, method=m) for m in methods
            )
            name = f"random, blurred by {blur} pixels" if blur else "random"
            table += f"| {scaled_by} | {name} | {' | '.join(f'{e:.4f}' for e in errors)} |\n"
    return table


def render_images(count: int) -> torch.Tensor:
    """Images of the shapes dataset, normalized, float64 [count, 3, 224, 224]."""
    scenes = [draw_scene(np.random.default_rng(i), 224, 224)[0] for i in range(count)]
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).double() / 255
    return (images - images.mean()) / images.std()


def kernel(blur: float) -> torch.Tensor:
    """Random kernels [32, 3, 14, 14], blurred by a Gaussian of that many pixels."""
    weight = torch.randn(32, 3, 14, 14, dtype=torch.float64)
    if not blur:
        return weight
    taps = torch.exp(-((torch.arange(-6.0, 7.0, dtype=torch.float64) / blur) ** 2) / 2)
    taps = (taps / taps.sum()).view(1, 1, -1, 1)
    blurred = F.conv2d(weight.flatten(0, 1)[:, None], taps, padding=(6, 0))
    return F.conv2d(blurred, taps.mT, padding=(0, 6)).view(weight.shape)


def resample(weight, patch_size: int, method: str) -> torch.Tensor:
    """The package's method ('pinv'), EVA's ('bicubic', scaled by area) and EVA-02's."""
    if method == "pinv":
        return resample_patch_kernel(weight, patch_size)
    size, antialias = (patch_size, patch_size), method != EVA02
    resized = F.interpolate(weight, size=size, mode="bicubic", antialias=antialias)
    return resized if method == EVA02 else resized * (14 / patch_size) ** 2


def token_error(images, weight, patch_size, *, scaled_by, method) -> float:
    """Relative difference between the tokens of scaled images and those of the images."""
    tokens = F.conv2d(images, weight, stride=14)
    side = 16 * patch_size
    scaled = F.interpolate(images, size=(side, side), mode=scaled_by, antialias=True)
    new = F.conv2d(scaled, resample(weight, patch_size, method), stride=patch_size)
    return ((new - tokens).norm() / tokens.norm()).item()


def full_rows() -> Iterator[str]:
    for network, side in published_networks():
        with tempfile.TemporaryDirectory() as directory:
            modes, sizes, errors = zip(*full_errors(network, side, Path(directory)))
        text = line(f"`{network}`", "full", dict.fromkeys(sizes), dict.fromkeys(modes), max(errors))
        print(text, end="", flush=True)
        yield text


def line(title: str, how: str, sizes: Any, modes: Any, error: float) -> str:
    sizes = ", ".join(f"{height} x {width}" for height, width in sizes)
    return f"| {title} | {how} | {sizes} | {', '.join(modes)} | {error:.1e} |\n"


def write(name: str, table: str) -> None:
    """Replaces the text between the two marks of a table."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = pattern.subn(lambda match: match[1] + table + match[2], DOCS.read_text())
    assert count == 1, name
    DOCS.write_text(text)


if __name__ == "__main__":
    main()
