"""Benchmark the backbone against its peers: time, memory and operations over image sizes.

The peers come with `pip install -e .[bench]`: segment-anything's ImageEncoderViT (ViTDet's ViT-B
with relative positions, windows of 14, patch 16), birder's own network with the same weights,
timm's EVA-02 and DINOv3. Variants take turns in one process; on a CPU memory is measured in a fresh
one.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

try:
    import ropevit_mmdet  # makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

import torch
from mmengine import fileio
from torch import nn

from ropevit_mmdet.apis.benchmark.measure import (
    MODES,
    Bench,
    Variant,
    limit_memory,
    peak_memory,
    share_of_gpu,
)
from ropevit_mmdet.apis.benchmark.report import add, begin, is_measured, plot, table
from ropevit_mmdet.visualization.figure_file import check_png

SIZES = [448, 672, 896, 1120, 1344, 1792]
RECIPE = dict(window_size=16, pos_embed_mode="tile", rope_interpolation=896)


def ours(side: int, **arguments) -> nn.Module:
    return ropevit_mmdet.RoPEViT("rope_vit_reg4_b14", **arguments)


def birder(side: int) -> nn.Module:
    import birder.net  # noqa: F401  (registers the networks)
    from birder.model_registry import registry

    net = registry.net_factory("rope_vit_reg4_b14", 0, size=(224, 224))
    net.set_dynamic_size()
    net.forward = net.detection_features
    return net


def segment_anything(side: int) -> nn.Module:
    from segment_anything.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(
        img_size=16 * side,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(2, 5, 8, 11),
    )
    encoder.neck = nn.Identity()  # a neck is not a backbone's work
    return encoder


def from_timm(side: int, *, name: str) -> nn.Module:
    import timm

    net = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    net.forward = net.forward_features
    return net


VARIANTS = {
    "windows": Variant(partial(ours, **RECIPE), 14),
    "windows-cp": Variant(partial(ours, with_cp=True, **RECIPE), 14),
    "global": Variant(ours, 14),
    "birder": Variant(birder, 14),
    "sam": Variant(segment_anything, 16),
    "eva02": Variant(partial(from_timm, name="eva02_base_patch14_224"), 14),
    "dinov3": Variant(partial(from_timm, name="vit_base_patch16_dinov3"), 16),
}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        name, pixels, mode = args.peak_of.split(":")
        limit_memory()
        print(peak_memory(make_bench(args, [name]), name, int(pixels), mode))
        return
    report = {
        "device": device_name(torch.device(args.device)),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "batch": args.batch,
        "compiled": args.compile,
        "torch": torch.__version__,
    }
    try:
        if args.plot:
            check_png(args.plot)
        report = begin(report, args.json, command=" ".join(["tools/benchmark.py", *sys.argv[1:]]))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for pixels in args.sizes:
        for mode in args.modes:
            if is_measured(report, args.variants, pixels, mode, batches_of=args.max_batch):
                continue
            add(report, *measure(args, pixels, mode))
            if args.json:
                fileio.put(json.dumps(report, indent=1).encode() + b"\n", args.json)
    say("")
    print(table(report))
    if args.plot:
        plot(report, args.plot)


def measure(args: argparse.Namespace, pixels: int, mode: str) -> tuple[list[dict], list[dict]]:
    """Rows of one size and mode, with the machine's rate around them, and what did not fit."""
    rows, left_out, peaks, batches = [], [], {}, {}
    for name in args.variants if not args.no_memory else ():
        say(f"{pixels} px, {mode}, memory: {name}")
        try:
            peaks[name] = peak_of_variant(args, name, pixels, mode)
        except RuntimeError as error:
            left_out.append(dict(variant=name, pixels=pixels, mode=mode, why=str(error)))
    fitting = args.variants if args.no_memory else list(peaks)
    for name in fitting if args.max_batch else ():
        say(f"{pixels} px, {mode}, largest batch: {name}")
        alone = make_bench(args, [name])
        batches[name] = {
            f"{gb:g}": alone.largest_batch(name, pixels, mode, gb) for gb in args.max_batch
        }
        del alone  # its weights too
    bench = make_bench(args, fitting)
    before = bench.matmul_rate()
    timings = bench.time(pixels, mode, runs=args.runs, progress=say)
    rate = (before + bench.matmul_rate()) / 2
    for timing in timings:
        row = timing._asdict() | {"matmul_rate": rate}
        if timing.variant in peaks:
            row["peak_bytes"] = peaks[timing.variant]
        if timing.variant in batches:
            row["largest_batch"] = batches[timing.variant]
        rows.append(row)
    return rows, left_out


def peak_of_variant(args: argparse.Namespace, name: str, pixels: int, mode: str) -> int:
    """Peak bytes; RuntimeError if it does not fit, or with the last words of a fresh process.

    A GPU's allocator counts what is held; a CPU's memory is that of a process.
    """
    if torch.device(args.device).type == "cuda":
        try:
            return peak_memory(make_bench(args, [name]), name, pixels, mode)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("does not fit in memory") from error
        except Exception as error:  # a peer that is not installed, or that fails
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        finally:
            torch.cuda.empty_cache()
    command = [sys.executable, __file__, "--peak-of", f"{name}:{pixels}:{mode}"]
    command += ["--device", args.device, "--dtype", args.dtype, "--batch", str(args.batch)]
    command += ["--threads", str(args.threads)] + ["--compile"] * args.compile
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        no_memory = re.search("not enough memory|allocate memory|out of memory", words[-1])
        raise RuntimeError("does not fit in memory" if no_memory else words[-1])
    return int(done.stdout.split()[-1])


def make_bench(args: argparse.Namespace, names: list[str]) -> Bench:
    return Bench(
        {name: VARIANTS[name] for name in names},
        device=args.device,
        dtype=getattr(torch, args.dtype),
        batch=args.batch,
        compiled=args.compile,
    )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def say(message: str) -> None:
    sys.stderr.write(f"\r{message:78}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="pixels, at patch 14")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--runs", type=int, default=5, help="timed rounds after a warm-up")
    parser.add_argument("--batch", type=int, default=1)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="run through torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    help = "also find the largest batch on GPUs of so much memory"
    parser.add_argument("--max-batch", nargs="+", type=float, default=[], metavar="GB", help=help)
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--json", metavar="FILE", help="keep the figures there, or continue")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw time and memory over size")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for gigabytes in args.max_batch:
        try:
            share_of_gpu(torch.device(args.device), gigabytes)
        except ValueError as error:
            parser.error(f"--max-batch: {error}")
    wrong = [size for size in args.sizes if size % 56]
    if wrong:
        parser.error(f"--sizes must be multiples of 56 pixels, got {wrong[0]}")
    return args


if __name__ == "__main__":
    main()
