"""Multi-scale deformable attention against mmcv's PyTorch version, at the shape of DINO's encoder.

    python -m benchmarks.deformable_attention --sizes 448 896
    python -m benchmarks.deformable_attention --sizes 896 --batch 2 --device cuda --dtype bfloat16

Four levels of strides 14 to 112, every token a query, 8 heads of 32 channels, 4 points per level.
Peak memory is that of PyTorch's allocator above the inputs.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ropevit_mmdet.apis.benchmark.measure import device_name, peak_of, wait_for
from ropevit_mmdet.compat.ops.multi_scale_deformable import (
    mmcv_attention,
    multi_scale_deformable_attention,
)

HEADS, DIM, POINTS, STRIDES = 8, 32, 4, (14, 28, 56, 112)
FORMS = {"mmcv": mmcv_attention, "ours": multi_scale_deformable_attention}


def encoder_inputs(
    pixels: int, batch: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, level sizes, locations near the query's own, and weights; as an encoder has them."""
    sides = [pixels // stride for stride in STRIDES]
    shapes = torch.tensor([(side, side) for side in sides], device=device)
    centers = [(torch.arange(side, device=device) + 0.5) / side for side in sides]
    own = torch.cat([torch.cartesian_prod(center, center).flip(1) for center in centers])
    points = (batch, len(own), HEADS, len(sides), POINTS)
    offsets = 3 * torch.randn(*points, 2, device=device) / shapes[:, None]
    weights = torch.rand(points, device=device).flatten(3).softmax(-1).view(points)
    value = torch.randn(batch, len(own), HEADS, DIM, device=device)
    inputs = value, own[:, None, None, None] + offsets, weights
    value, locations, weights = (tensor.to(dtype).requires_grad_() for tensor in inputs)
    return value, shapes, locations, weights


def step(form: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass."""
    leaves, device = [inputs[0], *inputs[2:]], inputs[0].device
    wait_for(device)
    start = time.perf_counter()
    output = form(*inputs)
    wait_for(device)
    middle = time.perf_counter()
    torch.autograd.grad(output, leaves, torch.ones_like(output))
    wait_for(device)
    return middle - start, time.perf_counter() - middle


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The peak of the allocator during some work above what is allocated before it."""
    if device.type != "cpu":
        return peak_of(work, device)
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum(sizes).max(initial=0))


def measure(inputs: tuple[Tensor, ...], runs: int) -> dict[str, list[float]]:
    """Per form: median seconds forward, backward and both, peaks forward and both over the output.

    The forms are timed alternately, after a first round that is not counted.
    """
    seconds = [[step(form, inputs) for form in FORMS.values()] for _ in range(runs + 1)][1:]
    rows = {}
    for (name, form), taken in zip(FORMS.items(), np.moveaxis(seconds, 1, 0), strict=True):
        medians = [*np.median(taken, axis=0), np.median(taken.sum(1))]
        works = (partial(form, *inputs), partial(step, form, inputs))
        peaks = [peak_bytes(work, inputs[0].device) / inputs[0].nbytes for work in works]
        rows[name] = [*medians, *peaks]
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[448, 896], help="pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = f"{args.dtype}, batch {args.batch}, {args.threads} threads"
    print(f"{device_name(args.device)}, torch {torch.__version__}, {settings}")
    print("pixels form  seconds: forward backward  both  peak / output: forward both")
    for pixels in args.sizes:
        inputs = encoder_inputs(pixels, args.batch, args.device, getattr(torch, args.dtype))
        for name, (*seconds, forward, both) in measure(inputs, args.runs).items():
            times = " ".join(f"{second:9.5f}" for second in seconds)
            print(f"{pixels:6} {name} {times} {forward:8.1f} {both:8.1f}")


if __name__ == "__main__":
    main()
