"""EoMTHead: queries that run through the last blocks of a plain ViT with its patches.

Paper: EoMT, "Your ViT is Secretly an Image Segmentation Model", arXiv 2503.19108. Reference
implementation: https://github.com/tue-mps/eomt, `models/eomt.py`, whose parameter names are used.
Targets and losses are those of mmdet's Mask2Former.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ropevit_mmdet.models.layers.block import Block
from ropevit_mmdet.models.layers.norm import LayerNorm2d
from ropevit_mmdet.models.layers.rope import Segment
from ropevit_mmdet.models.layers.windows import WindowGroup, to_grid, to_window_order


class LastBlocks(NamedTuple):
    """The last blocks of a RoPEViT, and the tokens of images that enter them."""

    blocks: Sequence[Block]
    norm: nn.Module  # of the tokens that the head reads
    tokens: Tensor  # [B, S + N, C], patches in window order
    segment: Segment  # of global attention
    groups: tuple[WindowGroup, ...]

    @property
    def num_patches(self) -> int:
        """N, patches of the grid."""
        return sum(group.windows * group.patches for group in self.groups)


@MODELS.register_module()
class EoMTHead(Mask2FormerHead):
    """Classes and masks of queries; masks are dot products with upscaled patches.

    In training every one of the last blocks has its own prediction, and a query attends only to the
    patches of its mask, with the probability `attn_mask_probs[i]` in block i (see
    `MaskAnnealingHook`). In eval mode attention has no mask.

    Args:
        in_channels: channels of the backbone's tokens, C.
        patch_size: pixels of the backbone's patches.
        num_things_classes: classes of instances.
        num_stuff_classes: classes of regions, in panoptic segmentation.
        num_queries: the highest number of masks per image, Q.
        num_blocks: last blocks of the backbone, which the queries pass.
        no_object_weight: weight of a query without an object in the classification loss.
        loss_cls: cross entropy, without `class_weight`.
        loss_mask: binary cross entropy of sampled points.
        loss_dice: dice loss of sampled points.
        train_cfg: as for mmdet's `Mask2FormerHead`.
        test_cfg: for the fusion head.
        init_cfg: as in mmengine; default: PyTorch's initialization, as published.
    """

    attn_mask_probs: Tensor

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        *,
        num_things_classes: int,
        num_stuff_classes: int = 0,
        num_queries: int = 200,
        num_blocks: int = 4,
        no_object_weight: float = 0.1,
        loss_cls: Mapping[str, Any],
        loss_mask: Mapping[str, Any],
        loss_dice: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)
        self.in_channels, self.patch_size, self.num_blocks = in_channels, patch_size, num_blocks
        self.num_things_classes, self.num_stuff_classes = num_things_classes, num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.num_queries = num_queries
        self.q = nn.Embedding(num_queries, in_channels)
        self.class_head = nn.Linear(in_channels, self.num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
        )
        count = max(1, int(math.log2(patch_size)) - 2)  # to 4 to 8 pixels per cell
        self.upscale = nn.Sequential(*(ScaleBlock(in_channels) for _ in range(count)))
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks), persistent=False)
        self.class_weight = [1.0] * self.num_classes + [no_object_weight]
        self.loss_cls = MODELS.build({**loss_cls, "class_weight": self.class_weight})
        self.loss_mask, self.loss_dice = MODELS.build(loss_mask), MODELS.build(loss_dice)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        if train_cfg:
            self.assigner = TASK_UTILS.build(train_cfg["assigner"])
            self.sampler = TASK_UTILS.build(train_cfg["sampler"], default_args={"context": self})
            self.num_points = train_cfg["num_points"]
            self.oversample_ratio = train_cfg["oversample_ratio"]
            self.importance_sample_ratio = train_cfg["importance_sample_ratio"]

    def init_weights(self) -> None:
        """Only what `init_cfg` names."""
        BaseModule.init_weights(self)

    def forward(
        self, x: LastBlocks, batch_data_samples: Any = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Runs queries and tokens through the last blocks.

        Args:
            x: blocks and tokens.
            batch_data_samples: not read.

        Returns:
            Class logits [B, Q, classes + 1] and mask logits [B, Q, rows, columns], one of each per
            prediction: in training before every block and after the last, else only the latter.
        """
        queries = self.q.weight.to(x.tokens.dtype).expand(x.tokens.shape[0], -1, -1)
        tokens = torch.cat((queries, x.tokens), dim=1)  # [B, Q + S + N, C]
        segment = x.segment.with_leading(self.num_queries)
        predictions = []
        for block, prob in zip(x.blocks, self.attn_mask_probs, strict=True):
            if self.training:
                predictions.append(self.predict_masks(x.norm(tokens), x))
                mask = self.attention_mask(predictions[-1][1], prob, x)
                segment = segment._replace(mask=mask)
            tokens = block(tokens, [segment])
        predictions.append(self.predict_masks(x.norm(tokens), x))
        classes, masks = zip(*predictions, strict=True)
        return list(classes), list(masks)

    def predict_masks(self, tokens: Tensor, x: LastBlocks) -> tuple[Tensor, Tensor]:
        """Class and mask logits of normalized tokens [B, Q + S + N, C], as for `forward`."""
        queries = tokens[:, : self.num_queries]
        patches = to_grid(tokens[:, -x.num_patches :], x.groups).permute(0, 3, 1, 2)
        cells = self.upscale(patches)
        masks = self.mask_head(queries) @ cells.flatten(2)  # einsum would fix a traced batch
        return self.class_head(queries), masks.unflatten(2, cells.shape[-2:])

    def attention_mask(self, mask_logits: Tensor, prob: Tensor, x: LastBlocks) -> Tensor:
        """Which tokens attend to which: queries to the patches of their mask, all else to all.

        Args:
            mask_logits: [B, Q, rows, columns].
            prob: probability that the mask restricts a query, 0 to 1, sampled per query.
            x: of `forward`.

        Returns:
            [B, 1, Q + S + N, Q + S + N], True: takes part.
        """
        grid = [side >> len(self.upscale) for side in mask_logits.shape[-2:]]
        inside = F.interpolate(mask_logits, size=grid, mode="bilinear") > 0
        inside = to_window_order(inside.permute(0, 2, 3, 1), x.groups).transpose(1, 2)  # [B, Q, N]
        free = torch.rand(inside.shape[:2], device=inside.device) >= prob
        others = x.tokens.shape[1] - x.num_patches + self.num_queries  # queries, special tokens
        inside = F.pad(inside | free[..., None], (others, 0, 0, x.tokens.shape[1]), value=True)
        return inside[:, None]

    def predict(self, x: LastBlocks, batch_data_samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, classes + 1] and mask logits [B, Q, H, W] of the input images."""
        classes, masks = (outputs[-1] for outputs in self(x))
        height, width = batch_data_samples[0].metainfo["batch_input_shape"]
        masks = F.interpolate(masks, size=self._pixels(masks), mode="bilinear")
        return classes, masks[..., :height, :width]

    def loss_by_feat(
        self,
        all_cls_scores: Sequence[Tensor],
        all_mask_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[Any],
        batch_img_metas: Sequence[Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """Mask2Former's losses, with masks padded to complete patches, as images are."""
        height, width = self._pixels(all_mask_preds[-1])
        for instances in batch_gt_instances:
            rows, columns = instances.masks.shape[-2:]
            instances.masks = F.pad(instances.masks, (0, width - columns, 0, height - rows))
        return super().loss_by_feat(
            all_cls_scores, all_mask_preds, batch_gt_instances, batch_img_metas
        )

    def _get_targets_single(self, cls_score: Tensor, mask_pred: Tensor, *args: Any) -> tuple:
        """The assigner gets finite values: it would raise before NonFiniteGuard sees the losses."""
        finite = (torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in (cls_score, mask_pred))
        return super()._get_targets_single(*finite, *args)

    def _pixels(self, mask_logits: Tensor) -> tuple[int, int]:
        """(height, width) that mask logits cover: complete patches."""
        rows, columns = (side >> len(self.upscale) for side in mask_logits.shape[-2:])
        return rows * self.patch_size, columns * self.patch_size


class ScaleBlock(nn.Module):
    """Doubles rows and columns: deconvolution, GELU, depthwise convolution, layer norm.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, columns] to [B, C, 2 rows, 2 columns]."""
        return self.norm(self.conv2(self.act(self.conv1(x))))
