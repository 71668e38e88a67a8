"""SimpleFeaturePyramid: a multi-scale pyramid out of the one map of a plain ViT.

Paper: ViTDet, arXiv 2203.16527, section 3 and appendix A.2. Reference implementation: detectron2,
``modeling/backbone/vit.py``. A stride-14 map gives strides 3.5, 7, 14, 28 and 56.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ropevit_mmdet.models.layers.block import LayerNorm2d, StridedConv

for _registry in (MODELS, ROOT_MODELS):  # the root, too: mmcv builds norms without a scope
    _registry.register_module(module=LayerNorm2d)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Scales one map up and down by powers of two, then mixes channels at every level.

    Args:
        in_channels, out_channels: channels of the map and of every level.
        in_stride: pixels per cell of the map.
        scale_factors: 4 two deconvolutions, 2 one, 1 the map itself, 0.5 max-pooling; coarser
            ones (0.25, ...) pool more.
        num_outs: levels; those beyond ``scale_factors`` halve the last one.
        add_extra_convs: how they do: False max-pool (R-CNN), 'on_output' stride-2 convolutions
            (RetinaNet).
        out_strides: pixels, one per level: every level is resampled to that stride by the exact
            factor; default: the strides that come out.
        norm_cfg: the norm of every layer; None for none.

    Raises:
        ValueError: arguments that contradict each other, named with their values.
    """

    def __init__(
        self,
        in_channels: int = 768,
        out_channels: int = 256,
        *,
        in_stride: float = 14,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        add_extra_convs: bool | str = False,
        out_strides: Sequence[float] | None = None,
        norm_cfg: Mapping[str, Any] | None = dict(type="LayerNorm2d", eps=1e-6),  # noqa: B006
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(scale_factors):
            raise ValueError(f"num_outs {num_outs} is less than scale_factors {scale_factors} give")
        if add_extra_convs not in (False, "on_output"):
            raise ValueError(f"add_extra_convs must be False or 'on_output', got {add_extra_convs}")
        if out_strides is not None and len(out_strides) != num_outs:
            raise ValueError(f"out_strides {tuple(out_strides)} for num_outs {num_outs}")
        num_extra = num_outs - len(scale_factors)
        self.own_strides = tuple(_plain(in_stride / scale) for scale in scale_factors)
        self.own_strides += tuple(self.own_strides[-1] * 2 ** (i + 1) for i in range(num_extra))
        self.strides = self.own_strides if out_strides is None else tuple(out_strides)

        norm_cfg = None if norm_cfg is None else dict(norm_cfg)
        self.scales, self.convs = nn.ModuleList(), nn.ModuleList()
        for scale in scale_factors:
            layers, channels = _scaling(in_channels, scale, norm_cfg)
            self.scales.append(layers)
            self.convs.append(
                nn.Sequential(
                    ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                    ConvModule(
                        out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None
                    ),
                )
            )
        if add_extra_convs:
            extra = (StridedConv(out_channels, out_channels, 3, 2, 1) for _ in range(num_extra))
        else:
            extra = (nn.MaxPool2d(1, stride=2) for _ in range(num_extra))
        self.extra = nn.ModuleList(extra)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid of a map.

        Args:
            inputs: [B, in_channels, rows, columns], or a sequence that holds just that.

        Returns:
            ``num_outs`` maps [B, out_channels, ...], finest first, sizes rounded up; float32 under
            autocast.

        Raises:
            ValueError: several maps.
        """
        if not isinstance(inputs, Tensor):
            if len(inputs) != 1:
                raise ValueError(
                    f"SimpleFeaturePyramid takes one map, got {len(inputs)}: give the backbone "
                    "a single out_index"
                )
            inputs = inputs[0]
        levels = [conv(scale(inputs)) for scale, conv in zip(self.scales, self.convs)]
        for layer in self.extra:
            levels.append(layer(levels[-1]))
        if torch.is_autocast_enabled(inputs.device.type):  # RoIs take the dtype of the maps
            levels = [level.float() for level in levels]
        return tuple(
            _resample(level, stride / out)
            for level, stride, out in zip(levels, self.own_strides, self.strides)
        )


def _scaling(channels: int, scale: float, norm_cfg: dict | None) -> tuple[nn.Module, int]:
    """Layers that scale a map, and the channels that they leave."""
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
    if kernel * scale != 1 or kernel & (kernel - 1) or kernel < 2:
        raise ValueError(f"scale_factors must be 4, 2, 1 or 1 over a power of two, got {scale}")
    return nn.MaxPool2d(kernel, stride=kernel, ceil_mode=True), channels


def _resample(level: Tensor, factor: float) -> Tensor:
    """Bilinear by exactly ``factor``: a cell's centre stays where it was, sizes round up."""
    if factor == 1:
        return level
    size = [-int(-(side * factor) // 1) for side in level.shape[-2:]]
    # F.interpolate takes a size or a factor; a size alone would stretch what rounding added. Where
    # a side stays the same, the operator copies and forgets the factor: so one cell more, cut off.
    asked = [new + (new == old) for new, old in zip(size, level.shape[-2:])]
    resampled = torch.ops.aten.upsample_bilinear2d(level, asked, False, factor, factor)
    return resampled[:, :, : size[0], : size[1]]


def _plain(stride: float) -> int | float:
    return int(stride) if stride == int(stride) else stride
