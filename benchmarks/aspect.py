"""Measure what batches of similar aspect ratios save: padding, patches and images per second.

    python -m benchmarks.aspect --batch 8 --size 896

Images have the sizes of COCO's. Batches are padded to a square, to their largest image as they
come, in the two groups of mmdet's AspectRatioBatchSampler, or in the groups of AspectBatchSampler.
Every size of a padded batch is timed, interleaved, and counted as often as it occurs.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmcv import rescale_size
from mmdet.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, SequentialSampler

from benchmarks.light import gflop
from ropevit_cli._arguments import add_cfg_options, positive_int
from ropevit_mmdet.apis import choose_device
from ropevit_mmdet.apis.benchmark.measure import Bench, device_name
from ropevit_mmdet.datasets import AspectBatchSampler
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import one_line_errors

MIX = {(640, 480): 55, (480, 640): 20, (640, 427): 15, (500, 375): 5, (640, 640): 5}  # percent
SAMPLERS = {
    "as they come": BatchSampler,
    "mmdet's two groups": DATA_SAMPLERS.get("AspectRatioBatchSampler"),
    "similar aspects": AspectBatchSampler,
}
SQUARE = "padded to a square"
Size = tuple[int, int]  # pixels, (height, width)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("config", nargs="?", default="ropevit_maskrcnn_aspect")
    add("--size", type=positive_int, default=896, help="pixels of the longer side")
    add("--batch", type=positive_int, default=8)
    add("--modes", nargs="*", default=["forward", "training"], help="none: only count")
    add("--runs", type=positive_int, default=3)
    add("--images", type=positive_int, default=4000, help="of the mix")
    add("--device", help="default: the first GPU, else the CPU")
    add("--dtype", default="float32")
    add("--json", type=Path, help="write the figures to this file")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    with one_line_errors():
        config = load_config(args.config, args.cfg_options)
        divisor = config.model.data_preprocessor.pad_size_divisor
        shapes = padded_batches(args.images, args.batch, args.size, divisor)
        sizes = {size for count in shapes.values() for size in count}
        flops = {size: sum(gflop(config, size, 100).values()) for size in sizes}
        rows = {name: share(count, flops, args) for name, count in shapes.items()}
        for mode in args.modes:
            seconds = timed(sizes, mode, args)
            for name, count in shapes.items():
                total = sum(number * seconds[size] for size, number in count.items())
                rows[name][mode] = args.batch * sum(count.values()) / total
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{device_name(str(choose_device(args.device)))}, torch {torch.__version__}")
    print(table(rows, args.modes))


def scaled(width: int, height: int, side: int) -> Size:
    """The size of an image after the pipeline's Resize."""
    width, height = rescale_size((width, height), (side, side))
    return height, width


def image_sizes(count: int) -> list[Size]:
    """(width, height) of images in random order."""
    choices = np.random.RandomState(0).choice(len(MIX), count, p=np.array([*MIX.values()]) / 100)
    return [[*MIX][index] for index in choices]


def padded_batches(images: int, batch: int, side: int, divisor: int) -> dict[str, Counter[Size]]:
    """How often batches have which padded size, by the name of a row; complete batches only."""
    sizes = image_sizes(images)
    data = SimpleNamespace(
        get_data_info=lambda index: dict(zip(("width", "height"), sizes[index], strict=True))
    )
    result: dict[str, Counter[Size]] = {SQUARE: Counter({(side, side): images // batch})}
    for name, cls in SAMPLERS.items():
        sampler = SequentialSampler(sizes)
        sampler.dataset = data
        padded = [
            padded_size([scaled(*sizes[index], side) for index in indices], divisor)
            for indices in cls(sampler, batch, drop_last=True)
        ]
        result[name] = Counter(padded)
    return result


def padded_size(sizes: Sequence[Size], divisor: int) -> Size:
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
    return height, width


def share(
    count: Counter[Size], flops: dict[Size, float], args: argparse.Namespace
) -> dict[str, float]:
    """Of the pixels of a row, those that are padding, and all, of squares; GFLOP per image."""
    content = np.mean([np.prod(scaled(*size, args.size)) for size in image_sizes(args.images)])
    batches = sum(count.values())
    pixels = sum(number * np.prod(size) for size, number in count.items()) / batches
    return dict(
        padding=float(1 - content / pixels),
        pixels=float(pixels / args.size**2),
        gflop=sum(number * flops[size] for size, number in count.items()) / batches,
    )


def timed(sizes: set[Size], mode: str, args: argparse.Namespace) -> dict[Size, float]:
    """Median seconds of a step by the size of its batch."""
    settings = dict(device=str(choose_device(args.device)), dtype=args.dtype)
    settings |= dict(options=tuple(args.cfg_options), threads=torch.get_num_threads())
    benches = {
        size: Bench(
            args.config, args.size, mode, args.batch, sizes=(size,) * args.batch, **settings
        )
        for size in sorted(sizes)
    }
    for bench in benches.values():
        bench.run()
    rounds = [
        {size: bench.seconds()[0] for size, bench in benches.items()} for _ in range(args.runs)
    ]
    return {size: float(np.median([one[size] for one in rounds])) for size in benches}


def table(rows: dict[str, dict[str, float]], modes: Sequence[str]) -> str:
    heads = ["batches", "padding", "pixels", "GFLOP"]
    heads += [cell for mode in modes for cell in (f"{mode}, images/s", "ratio")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [name, f"{row['padding']:.1%}", f"{row['pixels']:.3f}", f"{row['gflop']:.0f}"]
        for mode in modes:
            cells += [f"{row[mode]:.3g}", f"{row[mode] / rows[SQUARE][mode]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
