"""Random sizes and settings for backbone and neck: shapes, finite values, invariances.

`python -m tests.sizes_trial --cases 2000 --log FILE` writes a line for each case and ends with
status 1 if one fails; `tests/test_models/test_sizes.py` tries a few. The architectures are tiny, so
that 1500 pixels are quick; everything else is sampled from the options of a config.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor
from tqdm import tqdm

import ropevit_mmdet  # noqa: F401  (prepares the mm stack before anything imports mmcv.ops)

# isort: split
from mmdet.models import DetDataPreprocessor

from ropevit_mmdet import RoPEViT, SimpleFeaturePyramid
from ropevit_mmdet.models.layers.windows import window_groups
from tests.oracle import fill

LARGEST = 1500  # pixels
DIM = 16
_ROUND = 250  # cases of one run of hypothesis, whose first ones are the simplest
ROPES = {  # rope_style, rope_rot_type
    "default": ("default", "standard"),
    "interleaved": ("default", "interleaved"),
    "axial": ("axial", "interleaved"),
    "centered": ("centered_separate", "standard"),
}
PYRAMIDS = {  # scale_factors, num_outs, add_extra_convs
    "r-cnn": ((4, 2, 1, 0.5), 5, False),
    "one-stage": ((2, 1, 0.5), 5, "on_output"),
    "shapes": ((1, 0.5, 0.25), 3, False),
    "one level": ((1,), 1, False),
    "coarse": ((0.5, 0.125), 4, "on_output"),
}


@dataclass(frozen=True)
class Case:
    """One sample: a model, a batch of images of one size, a number type."""

    height: int  # pixels
    width: int
    batch: int
    dtype: str  # bfloat16: autocast of a float32 model
    patch_size: int
    window_size: int | None  # patches
    global_attn_indices: tuple[int, ...] | None
    rope: str
    rope_interpolation: str | float
    pos_embed_mode: str
    special_tokens: tuple[int, bool]  # registers, class token
    out_indices: tuple[int, ...]
    final_norm: bool
    pyramid: str
    power_strides: bool  # out_strides of powers of two
    divisor: int  # pixels, of the data preprocessor
    seed: int

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.height // self.patch_size), -(-self.width // self.patch_size)


@st.composite
def cases(draw: Callable[[Any], Any]) -> Case:
    """Sides of 1 to 1500 pixels; the largest images are cut into windows, as global attention
    over 11,000 tokens takes long and shows nothing new."""
    ranges = ((1, 40), (41, 200), (201, 600), (601, LARGEST))
    side = st.one_of(*(st.integers(low, high) for low, high in ranges))
    height, width = draw(side), draw(side)
    windows = (None, 1, 2, 3, 4, 7, 16, 200) if height * width <= 400 * 400 else (3, 7, 16)
    window = draw(st.sampled_from(windows))
    blocks = [()] if height * width > 600 * 600 else [None, (), (), (0,), (1,), (0, 1)]
    return Case(
        height=height,
        width=width,
        batch=draw(st.integers(1, 3)) if height * width <= 400 * 400 else 2,
        dtype=draw(st.sampled_from(("float32", "float64", "bfloat16"))),
        patch_size=draw(st.sampled_from((14, 16))),
        window_size=window,
        global_attn_indices=None if window is None else draw(st.sampled_from(blocks)),
        rope=draw(st.sampled_from(sorted(ROPES))),
        rope_interpolation=draw(st.sampled_from(("pretrain", "none", 224, 896, 317.5))),
        pos_embed_mode=draw(st.sampled_from(("interpolate", "tile"))),
        special_tokens=draw(st.sampled_from(((4, True), (0, True), (1, False), (0, False)))),
        out_indices=draw(st.sampled_from(((0,), (1,), (0, 1)))),
        final_norm=draw(st.booleans()),
        pyramid=draw(st.sampled_from(sorted(PYRAMIDS))),
        power_strides=draw(st.booleans()),
        divisor=draw(st.sampled_from((1, 14, 16, 28, 32, 56))),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def check(case: Case) -> None:
    """Raise AssertionError for a wrong shape or value."""
    run, backbone, neck = _models(case)
    raw, images = _images(case)
    maps = run(backbone, images)
    height, width = images.shape[-2:]
    grid = tuple(-(-side // case.patch_size) for side in (height, width))
    assert [m.shape for m in maps] == [(len(images), DIM, *grid)] * len(case.out_indices)
    assert all(m.isfinite().all() for m in maps), "not finite"

    levels = run(neck, (maps[-1],))
    sizes = _level_sizes(case, grid, neck)
    assert [level.shape for level in levels] == [(len(images), 8, *size) for size in sizes], (
        [tuple(level.shape) for level in levels],
        sizes,
    )
    assert all(level.isfinite().all() for level in levels), "a level is not finite"
    if case.dtype == "bfloat16":
        assert all(level.dtype == torch.float32 for level in levels)

    _check_padding(case, run, backbone, raw, images, maps)
    order = torch.randperm(len(images))
    _close(case, run(backbone, images[order]), [m[order] for m in maps], "another order")
    _close(case, run(backbone, images[:1]), [m[:1] for m in maps], "a single image")
    _close(case, run(neck, (maps[-1][:1],)), [level[:1] for level in levels], "a single pyramid")
    if case.window_size is not None and not backbone.global_attn_indices:
        _check_windows(case, run, backbone, images, maps)


def _models(case: Case) -> tuple[Callable, RoPEViT, SimpleFeaturePyramid]:
    torch.manual_seed(case.seed)
    style, rotation = ROPES[case.rope]
    registers, class_token = case.special_tokens
    arch = dict(
        patch_size=14, num_layers=2, num_heads=2, hidden_dim=DIM, mlp_dim=32, drop_path_rate=0.0,
        num_reg_tokens=registers, class_token=class_token,
        rope_style=style, rope_rot_type=rotation,
    )  # fmt: skip
    backbone = RoPEViT(
        arch,
        patch_size=case.patch_size,
        window_size=case.window_size,
        global_attn_indices=case.global_attn_indices,
        rope_interpolation=case.rope_interpolation,
        pos_embed_mode=case.pos_embed_mode,
        out_indices=case.out_indices,
        final_norm=case.final_norm,
    )
    scales, num_outs, extra = PYRAMIDS[case.pyramid]
    first = {4: 4, 2: 8, 1: 16, 0.5: 32}[scales[0]]
    neck = SimpleFeaturePyramid(
        DIM,
        8,
        in_stride=case.patch_size,
        scale_factors=scales,
        num_outs=num_outs,
        add_extra_convs=extra,
        out_strides=[first * 2**i for i in range(num_outs)] if case.power_strides else None,
    )
    for model in (backbone, neck):
        fill(model).eval()
        model.to(torch.float64 if case.dtype == "float64" else torch.float32)

    def run(model: torch.nn.Module, inputs: Any) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, case.dtype == "bfloat16"):
            return model(inputs)

    return run, backbone, neck


def _images(case: Case) -> tuple[list[Tensor], Tensor]:
    """Images [3, H, W], uint8, all but the first smaller, and the batch that is made of them."""
    images = []
    for number in range(case.batch):
        height, width = (max(1, side * (4 - number) // 4) for side in (case.height, case.width))
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
    preprocessor = DetDataPreprocessor(
        mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_size_divisor=case.divisor
    )
    batch = preprocessor({"inputs": images, "data_samples": None})["inputs"]
    return images, batch.to(torch.float64 if case.dtype == "float64" else torch.float32)


def _check_padding(
    case: Case, run: Callable, backbone: RoPEViT, raw: list[Tensor], images: Tensor, maps: tuple
) -> None:
    """What the preprocessor and the backbone add is zeros at the right and at the bottom."""
    last = (raw[-1].flip(0).to(images.dtype) - 127.5) / 64
    height, width = (-(-side // case.divisor) * case.divisor for side in (case.height, case.width))
    assert images.shape[-2:] == (height, width)
    patch = case.patch_size
    rows, columns = (-(-side // patch) * patch for side in (height, width))
    by_hand = images.new_zeros(1, 3, rows, columns)
    by_hand[0, :, : last.shape[1], : last.shape[2]] = last
    _close(case, run(backbone, by_hand), [m[-1:] for m in maps], "padded by hand")
    padded = F.pad(images, (0, columns - width, 0, rows - height))
    for one, other in zip(run(backbone, padded), maps, strict=True):
        assert torch.equal(one, other), "the backbone's own padding"


def _check_windows(
    case: Case, run: Callable, backbone: RoPEViT, images: Tensor, maps: Sequence[Tensor]
) -> None:
    """Without a global block the pixels of a window change only its part of the feature maps."""
    grid = tuple(maps[0].shape[-2:])
    group = window_groups(grid, case.window_size)[-1]  # the ragged corner, where there is one
    row, column = group.rows - 1, group.columns - 1
    top, left = group.top + row * group.height, group.left + column * group.width
    inside = torch.zeros(grid, dtype=torch.bool)
    inside[top : top + group.height, left : left + group.width] = True
    changed = images.clone()
    p = case.patch_size
    part = changed[..., top * p : (top + group.height) * p, left * p : (left + group.width) * p]
    part += torch.randn_like(part)
    for before, after in zip(maps, run(backbone, changed), strict=True):
        assert torch.equal(before[..., ~inside], after[..., ~inside]), "another window changed"
        assert not torch.equal(before[..., inside], after[..., inside]), "its own did not"


def _level_sizes(
    case: Case, grid: Sequence[int], neck: SimpleFeaturePyramid
) -> list[tuple[int, ...]]:
    """Of every level: the map's cells scaled, halved where levels are added, then resampled."""
    scales, num_outs, _ = PYRAMIDS[case.pyramid]
    sizes = [tuple(math.ceil(cells * scale) for cells in grid) for scale in scales]
    while len(sizes) < num_outs:
        sizes.append(tuple(-(-cells // 2) for cells in sizes[-1]))
    factors = [own / out for own, out in zip(neck.own_strides, neck.strides, strict=True)]
    return [
        tuple(math.ceil(cells * factor) for cells in size) for size, factor in zip(sizes, factors)
    ]


def _close(case: Case, actual: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    tolerance = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1}[case.dtype]
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape, what
        difference = (one.double() - other.double()).abs().max()
        assert difference <= tolerance * (1 + other.abs().max()), f"{what}: off by {difference:.2g}"


def try_cases(
    number: int, first_seed: int, tried: Callable[[Case, str | None, float], None]
) -> None:
    """Checks samples; `tried` gets each case, its error or None, and the seconds it took."""

    @seed(first_seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def run(case: Case) -> None:
        started, error = time.perf_counter(), None
        try:
            check(case)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            raise
        finally:
            tried(case, error, time.perf_counter() - started)

    run()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="different ones (default: 2000)")
    parser.add_argument(
        "--log", type=Path, default=Path(os.devnull), help="a line of JSON for each case"
    )
    args = parser.parse_args(argv)
    seen: set[Case] = set()
    failed = None
    with args.log.open("w") as log, tqdm(total=args.cases, unit="case", disable=None) as bar:

        def tried(case: Case, error: str | None, seconds: float) -> None:
            seen.add(case)
            bar.update(len(seen) - bar.n)
            record = {**asdict(case), "seconds": round(seconds, 3), "error": error}
            log.write(json.dumps(record) + "\n")

        try:
            for round_seed in itertools.count():  # some samples are equal
                if len(seen) >= args.cases:
                    break
                try_cases(_ROUND, round_seed, tried)
        except Exception as error:  # whatever a case ends with is a finding
            failed = error
    print(f"{len(seen)} different cases: {'one failed' if failed else 'all pass'}")
    if failed:
        print("\n".join([repr(failed), *getattr(failed, "__notes__", [])]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
