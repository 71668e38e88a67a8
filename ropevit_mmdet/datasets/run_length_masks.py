"""Masks of a data pipeline as run lengths, which take kilobytes instead of pixels per object."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures.mask import BitmapMasks
from pycocotools import mask as rle


def _per_mask(name: str) -> Callable[..., "RunLengthMasks"]:
    """The method of `BitmapMasks`, run on one mask at a time."""
    method = getattr(BitmapMasks, name)

    def run(self: "RunLengthMasks", *args: Any, **options: Any) -> "RunLengthMasks":
        size = self.height, self.width
        empty = method(BitmapMasks([], *size), *args, **options)
        bitmaps = (BitmapMasks(rle.decode(code)[None], *size) for code in self.codes)
        codes = [_encode(method(one, *args, **options).masks[0]) for one in bitmaps]
        return RunLengthMasks(codes, empty.height, empty.width)

    run.__doc__ = f"See `BitmapMasks.{name}`."
    return run


class RunLengthMasks(BitmapMasks):
    """`BitmapMasks` of N objects with the same results, decoded where pixels are needed.

    mmdet's own class has several copies of all pixels in a pipeline: 12 megapixels and 100 objects
    are 1.2 GB each.
    """

    def __init__(
        self, masks: Iterable[dict[str, Any] | np.ndarray], height: int, width: int
    ) -> None:
        self.codes = [one if isinstance(one, dict) else _encode(one) for one in masks]
        self.height, self.width = int(height), int(width)

    @property
    def masks(self) -> np.ndarray:
        """The pixels, uint8 [N, H, W], decoded at each access; assignments to them count."""
        pixels = np.empty((len(self), self.height, self.width), np.uint8)
        for mask, code in zip(pixels, self.codes):
            mask[:] = rle.decode(code)
        masks = pixels.view(_Pixels)
        masks.owner = self
        return masks

    @masks.setter
    def masks(self, pixels: np.ndarray) -> None:
        self.codes = [_encode(one) for one in pixels]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> "RunLengthMasks":
        chosen = np.arange(len(self))[index].reshape(-1)
        return RunLengthMasks([self.codes[i] for i in chosen], self.height, self.width)

    rescale, resize, flip = _per_mask("rescale"), _per_mask("resize"), _per_mask("flip")
    pad, crop, expand = _per_mask("pad"), _per_mask("crop"), _per_mask("expand")
    translate, shear, rotate = _per_mask("translate"), _per_mask("shear"), _per_mask("rotate")

    def crop_and_resize(self, *args: Any, **options: Any) -> BitmapMasks:
        """See `BitmapMasks.crop_and_resize`."""
        bitmaps = BitmapMasks([], self.height, self.width)
        bitmaps.masks = self.masks
        return bitmaps.crop_and_resize(*args, **options)

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each mask."""
        return rle.area(self.codes).astype(np.uint64)

    def to_tensor(self, dtype: torch.dtype, device: Any) -> torch.Tensor:
        """See `BitmapMasks.to_tensor`."""
        masks = self.masks.view(np.ndarray)
        masks = masks.view(bool) if dtype is torch.bool else masks
        return torch.from_numpy(masks).to(device, dtype)

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """See `BitmapMasks.cat`."""
        if not all(isinstance(one, cls) for one in masks):
            return BitmapMasks.cat(masks)
        codes = [code for one in masks for code in one.codes]  # type: ignore[attr-defined]
        return cls(codes, masks[0].height, masks[0].width)


class _Pixels(np.ndarray):
    """Decoded masks: RandomErasing of mmdet assigns to a part of them."""

    owner: RunLengthMasks | None = None  # not of views and results

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        if self.owner is not None:
            self.owner.masks = self


class LoadRunLengths(LoadAnnotations):
    """mmdet's `LoadAnnotations`, whose masks are `RunLengthMasks`."""

    def _load_masks(self, results: dict[str, Any]) -> None:
        if not self.poly2mask:
            super()._load_masks(results)
            return
        height, width = results["ori_shape"]
        codes = [_run_lengths(one, height, width) for one in self._process_masks(results)]
        results["gt_masks"] = RunLengthMasks(codes, height, width)


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed run lengths of polygons or run lengths, as `LoadAnnotations` decodes them."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    uncompressed = isinstance(segmentation["counts"], list)
    return rle.frPyObjects(segmentation, height, width) if uncompressed else segmentation


def _encode(mask: np.ndarray) -> dict[str, Any]:
    return rle.encode(np.asfortranarray(mask, np.uint8))
