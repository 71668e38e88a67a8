"""SimpleFeaturePyramid: a multi-scale pyramid from the feature maps of a plain ViT, of one stride.

Paper: ViTDet, arXiv 2203.16527, section 3 and appendix A.2. Reference implementation: detectron2,
`modeling/backbone/vit.py`. A stride-14 feature map gives strides 3.5, 7, 14, 28 and 56.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ropevit_mmdet.models.layers.norm import LayerNorm2d
from ropevit_mmdet.models.layers.patch_embed import StridedConv
from ropevit_mmdet.weights.architectures import check_values

for _registry in (MODELS, ROOT_MODELS):  # in the root, too: mmcv builds norms without a scope
    _registry.register_module(module=LayerNorm2d)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Scales one feature map by powers of two, then mixes channels at every level.

    Args:
        in_channels: channels of the feature map; a list of them for several maps, as many as the
            backbone has `out_indices`.
        out_channels: channels of every level.
        fuse: how several maps become one: each passes a layer norm (a backbone's final norm is for
            its last map only), 'concat' or 'sum' joins them, a 1 x 1 convolution projects them, as
            in DINOv3's detector. One map is used as it is.
        in_stride: pixels per cell of the feature maps.
        scale_factors: 4 two deconvolutions, 2 one, 1 the feature map itself, 0.5 max-pooling;
            smaller ones (0.25, ...) pool more.
        num_outs: levels; those beyond `scale_factors` halve the last one.
        add_extra_convs: how they halve: False by max-pooling (R-CNN), 'on_output' by stride-2
            convolutions (RetinaNet).
        out_strides: pixels, one per level: every level is resampled to that stride by the exact
            factor; default: the strides of the scale factors.
        norm_cfg: the norm of every layer; None for none.
        init_cfg: as in mmengine.

    Raises:
        UserError: arguments that contradict each other, with their values.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int] = 768,
        out_channels: int = 256,
        *,
        fuse: str | None = None,
        in_stride: float = 14,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        add_extra_convs: bool | str = False,
        out_strides: Sequence[float] | None = None,
        norm_cfg: Mapping[str, Any] | None = dict(type="LayerNorm2d", eps=1e-6),  # noqa: B006
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        scales, count = tuple(scale_factors), len(scale_factors)
        widths = (in_channels,) if isinstance(in_channels, int) else tuple(in_channels)
        is_equal = fuse != "sum" or len(set(widths)) == 1
        is_extra = add_extra_convs in (False, "on_output")
        is_out = out_strides is None or len(out_strides) == num_outs
        check_values(
            (len(widths) > 0, "in_channels", "the channels of one map or more", in_channels),
            (fuse in (None, "concat", "sum"), "fuse", "None, 'concat' or 'sum'", fuse),
            (bool(fuse) or len(widths) < 2, "fuse of several maps", "'concat' or 'sum'", fuse),
            (is_equal, "in_channels for fuse='sum'", "equal", in_channels),
            (all(map(_is_scale, scales)), "scale_factors", "4, 2, 1 or 1 / a power of 2", scales),
            (num_outs >= count, "num_outs", f"{count} or more for {scales}", num_outs),
            (is_extra, "add_extra_convs", "False or 'on_output'", add_extra_convs),
            (is_out, "out_strides", f"None or {num_outs} strides", out_strides),
        )
        num_extra = num_outs - count
        self.in_stride, self.in_channels = in_stride, widths
        self.own_strides = tuple(_plain(in_stride / scale) for scale in scales)
        self.own_strides += tuple(self.own_strides[-1] * 2 ** (i + 1) for i in range(num_extra))
        self.strides = self.own_strides if out_strides is None else tuple(out_strides)

        norm_cfg = None if norm_cfg is None else dict(norm_cfg)
        plain: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=None)
        self.scales, self.convs = nn.ModuleList(), nn.ModuleList()
        for scale in scales:
            layers, channels = _scaling(widths[-1], scale, norm_cfg)
            self.scales.append(layers)
            first = ConvModule(channels, out_channels, 1, **plain)
            second = ConvModule(out_channels, out_channels, 3, padding=1, **plain)
            self.convs.append(nn.Sequential(first, second))
        extra: Iterable[nn.Module]
        if add_extra_convs:
            extra = (StridedConv(out_channels, out_channels, 3, 2, 1) for _ in range(num_extra))
        else:
            extra = (nn.MaxPool2d(1, stride=2) for _ in range(num_extra))
        self.extra = nn.ModuleList(extra)
        self.fusion = MapFusion(widths, str(fuse)) if len(widths) > 1 else None

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid of a feature map, or of several.

        Args:
            inputs: [B, in_channels, rows, columns], or a sequence of one such tensor per map.

        Returns:
            `num_outs` feature maps [B, out_channels, ...], finest first, sizes rounded up; float32
            under autocast.

        Raises:
            UserError: another number of feature maps than of `in_channels`.
        """
        maps = [inputs] if isinstance(inputs, Tensor) else inputs
        count, expected = len(maps), len(self.in_channels)
        is_count = count == expected
        check_values((is_count, "number of feature maps (out_indices)", f"{expected}", count))
        inputs = maps[0] if self.fusion is None else self.fusion(maps)
        levels = [conv(scale(inputs)) for scale, conv in zip(self.scales, self.convs)]
        for layer in self.extra:
            levels.append(layer(levels[-1]))
        if torch.is_autocast_enabled(inputs.device.type):  # RoIs take the dtype of the levels
            levels = [level.float() for level in levels]
        if len(levels) == 1:  # CenterNet views a whole map as a row; channels are last until here
            levels = [levels[0].contiguous()]
        pairs = zip(self.own_strides, self.strides, strict=True)
        return tuple(_resample(level, *pair) for level, pair in zip(levels, pairs))


class MapFusion(nn.Module):
    """Normalizes every map over its channels, joins the maps and projects to the last one's width.

    After DINOv3's detector (arXiv 2508.10104; facebookresearch/dinov3, `eval/detection/models/
    backbone.py` and `hub/detectors.py`).

    Args:
        in_channels: channels of every map; equal ones for 'sum'.
        mode: 'concat' or 'sum'.
    """

    def __init__(self, in_channels: Sequence[int], mode: str) -> None:
        super().__init__()
        self.mode = mode
        width = sum(in_channels) if mode == "concat" else in_channels[-1]
        self.norms = nn.ModuleList(LayerNorm2d(channels, eps=1e-6) for channels in in_channels)
        self.projection = nn.Conv2d(width, in_channels[-1], 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, in_channels[i], rows, columns] of one grid to [B, in_channels[-1], ...]."""
        normed = [norm(one) for norm, one in zip(self.norms, maps, strict=True)]
        joined = torch.cat(normed, dim=1) if self.mode == "concat" else reduce(torch.add, normed)
        return self.projection(joined)


def _is_scale(scale: float) -> bool:
    if scale in (4, 2, 1):
        return True
    kernel = round(1 / scale)
    return kernel * scale == 1 and kernel & (kernel - 1) == 0


def _scaling(channels: int, scale: float, norm_cfg: dict | None) -> tuple[nn.Module, int]:
    """Layers that scale a feature map, and their output channels."""
    if scale == 4:
        norm = [] if norm_cfg is None else [build_norm_layer(norm_cfg, channels // 2)[1]]
        layers = (
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            *norm,
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
        )
        return nn.Sequential(*layers), channels // 4
    if scale == 2:
        return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2), channels // 2
    if scale == 1:
        return nn.Identity(), channels
    kernel = round(1 / scale)
    return nn.MaxPool2d(kernel, stride=kernel, ceil_mode=True), channels


def _resample(level: Tensor, own: float, out: float) -> Tensor:
    """Bilinear from stride `own` to `out`: centers of cells stay, sizes round up."""
    if own == out:
        return level
    size = [int(-(-side * own // out)) for side in level.shape[-2:]]  # own / out would be rounded
    # F.interpolate takes a size or a factor, and a size would stretch the rounded-up part. Where a
    # side stays the same, the operator copies and ignores the factor: compute a cell more, cut it.
    padded = [new + (new == old) for new, old in zip(size, level.shape[-2:])]
    resampled = torch.ops.aten.upsample_bilinear2d(level, padded, False, own / out, own / out)
    return resampled[:, :, : size[0], : size[1]].contiguous()  # heads of mmdet use `view`


def _plain(stride: float) -> int | float:
    return int(stride) if stride == int(stride) else stride
