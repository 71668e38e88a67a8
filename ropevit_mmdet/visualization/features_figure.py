"""Draw the features of images, block by block: components, attention, norms; and single heads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ropevit_mmdet.visualization.features import BlockFeatures, principal_colors
from ropevit_mmdet.visualization.figure_file import plain, save_figure
from ropevit_mmdet.visualization.palette import COLORS

_SIDE = 2.5  # inches of a panel
_MOST_ROWS = 48  # more are too much for a figure, and for its reader


@dataclass(frozen=True)
class ImageFeatures:
    """An image as the network saw it, RGB [H, W, 3], and its features at the same blocks."""

    name: str
    pixels: np.ndarray
    patch: tuple[int, int]
    patch_size: int
    blocks: list[BlockFeatures]


def check_rows(images: int, blocks: int) -> None:
    """Raise ValueError for more images times blocks than there can be rows in a figure."""
    if images * blocks > _MOST_ROWS:
        raise ValueError(
            f"{images} images at {blocks} blocks are {images * blocks} rows of a figure: "
            f"give fewer, {_MOST_ROWS} rows at most"
        )


def plot_features(
    images: Sequence[ImageFeatures], path: str | os.PathLike[str], *, num_registers: int
) -> None:
    """Write a PNG with a row per image and block.

    Panels: the image with the chosen patch; principal components of its tokens as colors, of
    this image alone and in common with the others; the patch's attention, the mean over heads;
    the norms of tokens, as a map and as a distribution beside those of the special tokens, of
    which the first `num_registers` are registers.
    """
    joint = len(images) > 1
    together = [
        principal_colors([image.blocks[row].patches for image in images])
        for row in range(len(images[0].blocks) if joint else 0)
    ]
    panels = 5 + joint
    rows = [(image, block) for image in images for block in image.blocks]
    figure = Figure(figsize=(_SIDE * panels * 1.1, _SIDE * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), panels, squeeze=False)
    for line, (image, block), row in zip(range(len(rows)), rows, axes, strict=True):
        number, place = divmod(line, len(image.blocks))
        row = iter(row)
        _image(next(row), image, f"block {block.block}{' (windowed)' * block.windowed}")
        _map(next(row), principal_colors([block.patches])[0], "components")
        if joint:
            _map(next(row), together[place][number], "components in common")
        special = float(block.special_attention.sum(dim=1).mean())
        title = f"attention ({special:.0%} to special)" if len(block.special) else "attention"
        _attention(next(row), image, block.attention.mean(dim=0).numpy(), title)
        norms = block.patches.norm(dim=-1).numpy()
        axis = next(row)
        image = _map(axis, norms, "norm of tokens", cmap="viridis")
        figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
        _distribution(next(row), norms, block.special.norm(dim=-1).tolist(), num_registers)
    save_figure(figure, path, dpi=100)


def plot_heads(images: Sequence[ImageFeatures], path: str | os.PathLike[str]) -> None:
    """Write a PNG with a row per image and block: the chosen patch's attention, head by head."""
    rows = [(image, block) for image in images for block in image.blocks]
    heads = max(len(block.attention) for _, block in rows)
    size = (0.8 * _SIDE * (1 + heads), 0.8 * _SIDE * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), 1 + heads, squeeze=False)
    for (image, block), row in zip(rows, axes, strict=True):
        _image(row[0], image, f"block {block.block}{' (windowed)' * block.windowed}")
        for head, axis in enumerate(row[1:]):
            special = float(block.special_attention[head].sum())
            title = f"head {head} ({special:.0%} to special)"
            _attention(axis, image, block.attention[head].numpy(), title)
    save_figure(figure, path, dpi=80)


def _image(axis: Axes, image: ImageFeatures, label: str) -> None:
    axis.imshow(image.pixels, extent=_extent(image))
    axis.set_title(plain(_short(image.name)), fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    _mark(axis, image.patch)
    _bare(axis)


def _map(axis: Axes, values: np.ndarray, title: str, **settings: object):
    rows, columns = values.shape[:2]
    image = axis.imshow(values, extent=(0, columns, rows, 0), **settings)
    axis.set_title(title, fontsize=9)
    _bare(axis)
    return image


def _attention(axis: Axes, image: ImageFeatures, weights: np.ndarray, title: str) -> None:
    """Weights over the image in gray; what is outside of the patch's window is the gray alone.

    Colors go by the square root of weights: most are far below the largest.
    """
    gray = image.pixels.mean(axis=2) * 0.5 + 90
    axis.imshow(gray, extent=_extent(image), cmap="gray", vmin=0, vmax=255)
    shares = np.sqrt(weights / np.nanmax(weights))
    colors = matplotlib.colormaps["inferno"](shares)
    colors[..., 3] = np.nan_to_num(0.5 + 0.45 * shares)
    _map(axis, colors, title)
    _mark(axis, image.patch)


def _distribution(
    axis: Axes, norms: np.ndarray, special: Sequence[float], num_registers: int
) -> None:
    """How many patches have which norm, and the norms of registers and class token as lines."""
    everything = [*norms.flatten().tolist(), *special]
    thinnest = (max(everything) - min(everything)) / 100  # two pixels
    low, span = norms.min(), max(np.ptp(norms), thinnest)
    bars = max(1, min(24, int(span / thinnest))) if thinnest else 1
    axis.hist(norms.flatten(), bins=bars, range=(low, low + span), color=COLORS[5], label="patches")
    for number, norm in enumerate(special):
        register = number < num_registers
        first = number in (0, num_registers)
        label = ("registers" if register else "class token") if first else None
        style = "-" if register else "--"
        axis.axvline(norm, color=COLORS[1 if register else 6], linestyle=style, label=label)
    axis.set_title("norms", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.set_yticks([])
    axis.set_box_aspect(0.9)
    axis.legend(fontsize=7)


def _mark(axis: Axes, patch: tuple[int, int]) -> None:
    """A frame around the chosen patch that shows on dark and on bright."""
    row, column = patch
    across, down = (
        [column, column + 1, column + 1, column, column],
        [row, row, row + 1, row + 1, row],
    )
    axis.plot(across, down, color="black", linewidth=3)
    axis.plot(across, down, color="white", linewidth=1.2)


def _extent(image: ImageFeatures) -> tuple[float, float, float, float]:
    """The image's sides in patches, so that it lies under its maps."""
    height, width = image.pixels.shape[:2]
    return 0, width / image.patch_size, height / image.patch_size, 0


def _short(name: str, at_most: int = 28) -> str:
    return name if len(name) <= at_most else "..." + name[-at_most + 3 :]


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
