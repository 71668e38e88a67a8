"""Figure of a backbone's features per block: components, attention, token norms."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ropevit_mmdet.visualization._figure_file import COLORS, plain, shortened
from ropevit_mmdet.visualization.features import BlockFeatures, principal_colors

MAX_ROWS = 48  # of a figure
_SIDE = 2.5  # inches of a panel


class ImageFeatures(NamedTuple):
    """An image as the network receives it, RGB [H, W, 3], with its features at some blocks."""

    name: str
    pixels: np.ndarray
    blocks: list[BlockFeatures]


def plot_features(images: Sequence[ImageFeatures], *, num_registers: int) -> Figure:
    """Plots a row per image and block.

    Panels: the image with the chosen patch; principal components of its tokens as colors, per
    image and in common with the other images; the attention of the patch, mean over heads; token
    norms as a map and as a histogram, together with the norms of the special tokens.

    Args:
        images: images with features at the same blocks.
        num_registers: how many of the special tokens are registers; the other is the class token.
    """
    joint = len(images) > 1
    common = [principal_colors([one.patches for one in of_block])
              for of_block in zip(*(image.blocks for image in images))]  # fmt: skip
    rows = [(number, i) for number, image in enumerate(images) for i in range(len(image.blocks))]
    columns, side = 5 + joint, _SIDE * len(rows)
    figure = Figure(figsize=(1.1 * _SIDE * columns, side + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (number, i), row in zip(rows, axes, strict=True):
        image, panels = images[number], iter(row)
        block = image.blocks[i]
        _show_image(next(panels), image, block)
        _show_map(next(panels), principal_colors([block.patches])[0], "components")
        if joint:
            _show_map(next(panels), common[i][number], "components in common")
        _show_attention(next(panels), image, block)
        norms, axis = block.patches.norm(dim=-1).numpy(), next(panels)
        shown = _show_map(axis, norms, "token norms", cmap="viridis")
        figure.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
        _show_histogram(next(panels), norms, block.special.norm(dim=-1).numpy(), num_registers)
    return figure


def _show_image(axis: Axes, image: ImageFeatures, block: BlockFeatures) -> None:
    axis.imshow(image.pixels, extent=_extent(image, block))
    axis.set_title(plain(shortened(image.name, 28)), fontsize=9)
    axis.set_ylabel(f"block {block.block}{' (windowed)' * block.windowed}", fontsize=9)
    _frame_patch(axis, block.patch)
    axis.set(xticks=[], yticks=[])


def _show_map(axis: Axes, values: np.ndarray, title: str, **settings: Any) -> AxesImage:
    rows, columns = values.shape[:2]
    shown = axis.imshow(values, extent=(0, columns, rows, 0), **settings)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    return shown


def _show_attention(axis: Axes, image: ImageFeatures, block: BlockFeatures) -> None:
    """Draws weights over the gray image, with colors by their square root; NaN is transparent."""
    gray, weights = image.pixels.mean(axis=2) * 0.5 + 90, block.attention.mean(dim=0).numpy()
    axis.imshow(gray, extent=_extent(image, block), cmap="gray", vmin=0, vmax=255)
    shares = np.sqrt(weights / np.nanmax(weights))
    colors = matplotlib.colormaps["inferno"](shares)
    colors[..., 3] = np.nan_to_num(0.5 + 0.45 * shares)
    special = float(block.special_attention.sum(dim=1).mean())
    _show_map(axis, colors, f"attention ({special:.0%} to special)")
    _frame_patch(axis, block.patch)


def _show_histogram(axis: Axes, norms: np.ndarray, special: np.ndarray, num_registers: int) -> None:
    """Draws a histogram of patch norms, and the norms of registers and class token as lines."""
    values = np.append(norms, special)
    limits = values.min(), values.max()
    axis.hist(norms.flatten(), bins=40, range=limits, color=COLORS[5], label="patches")
    for name, color, dash, part in (
        ("registers", COLORS[1], "-", special[:num_registers]),
        ("class token", COLORS[6], "--", special[num_registers:]),
    ):
        for index, norm in enumerate(part):
            axis.axvline(norm, color=color, linestyle=dash, label=None if index else name)
    axis.set_title("norms", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.set_yticks([])
    axis.set_box_aspect(0.9)
    axis.legend(fontsize=7)


def _frame_patch(axis: Axes, patch: tuple[int, int]) -> None:
    """Draws a frame around a patch that is visible on dark and on bright images."""
    for color, linewidth in (("black", 3), ("white", 1.2)):
        frame = Rectangle(patch[::-1], 1, 1, fill=False, color=color, linewidth=linewidth)
        axis.add_patch(frame)


def _extent(image: ImageFeatures, block: BlockFeatures) -> tuple[float, float, float, float]:
    """The sides of the image in patches, to align it with its feature maps."""
    height, width = image.pixels.shape[:2]
    return 0, width / block.patch_size, height / block.patch_size, 0
