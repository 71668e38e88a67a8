"""Fills the tables of a GPU in docs/performance.md, in under 10 minutes on one GPU.

    python -m benchmarks.gpu_page

Backbones forward and forward + backward, next to birder and segment-anything; Mask R-CNN, RetinaNet
and DINO whole and by part; batch 1 and 8, eager and compiled; deformable attention, the kernels of
scaled dot product attention, and what waits for the GPU in a training step. Where time runs out,
what is left is skipped and named. On a CPU, where small sizes check the script, operators that
would wait are counted.
"""

import argparse
import io
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import deformable_attention
from benchmarks.peers import PEERS
from ropevit_mmdet.apis import adapt, choose_device
from ropevit_mmdet.apis.benchmark.measure import Bench, benchmark, wait_for
from ropevit_mmdet.apis.benchmark.report import table
from tests.oracle import birder_net, write_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARK = "<!-- gpu -->"
WAITING = "_local_scalar_dense nonzero masked_select _unique2 equal bincount".split()
DINO = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=896, help="pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backbones", nargs="+", default=["windows", "global", "birder", "sam"])
    parser.add_argument("--configs", nargs="+", default=["ropevit_maskrcnn", "ropevit_retinanet"])
    parser.add_argument("--dino-backbone", default="rope_vit_reg4_b14", help="'' skips DINO")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE, help="has two marks for the tables")
    parser.add_argument("--json", type=Path, default=Path("gpu_page.json"))
    args = parser.parse_args(argv)
    stop = time.monotonic() + 60 * args.minutes
    device = str(choose_device(args.device))
    with tempfile.TemporaryDirectory() as directory:
        configs = [*args.configs, *dino(args.dino_backbone, Path(directory))]
        groups = [  # the important ones first
            ({name: PEERS[name] for name in args.backbones}, max(args.batch)),
            *(({Path(name).stem: name}, batch) for name in configs for batch in args.batch),
            ({name: PEERS[name] for name in args.backbones[:1]}, min(args.batch)),
        ]
        reports, left = [], []
        for sources, batch in groups:
            if time.monotonic() > stop:
                left.append(f"{', '.join(sources)} at batch {batch}")
                continue
            reports.append(measured(args, sources, batch, device))
            args.json.write_text(json.dumps(reports, indent=1) + "\n")
    texts = [table(report) for report in reports]
    texts += [attention(args, device), kernels(args, device), waits(args, device)]
    texts += [f"Skipped for lack of time: {'; '.join(left)}."] if left else []
    write_page(args.page, texts)


def measured(args: argparse.Namespace, sources: dict, batch: int, device: str) -> dict[str, Any]:
    """A report of inference and training, eager and compiled."""
    return benchmark(
        sources,
        sizes=[args.size],
        modes=["forward", "training"],
        batches=[batch],
        compiled=not args.no_compile,
        runs=args.runs,
        progress=print,
        device=device,
        dtype=args.dtype,
        threads=torch.get_num_threads(),
    )


def dino(backbone: str, directory: Path) -> list[str]:
    """The config of DINO on a backbone with random weights, if one is named."""
    if not backbone:
        return []
    weights = write_checkpoint(birder_net(backbone, dtype=torch.float32), directory)
    adapt(DINO, str(weights), out=directory / "ropevit_dino.py")
    return [str(directory / "ropevit_dino.py")]


def attention(args: argparse.Namespace, device: str) -> str:
    """The output of `benchmarks.deformable_attention`."""
    output = io.StringIO()
    batch = str(max(args.batch))
    with redirect_stdout(output):
        deformable_attention.main(
            ["--sizes", str(args.size), "--batch", batch, "--device", device]
            + ["--dtype", args.dtype, "--runs", str(args.runs)]
        )
    return output.getvalue().strip()


def kernels(args: argparse.Namespace, device: str) -> str:
    """Milliseconds of each kernel of scaled dot product attention, in windows and globally."""
    side, batch = args.size // 14, max(args.batch)
    window, dtype = min(16, side), getattr(torch, args.dtype)
    lines = []
    for tokens, count in ((window**2 + 5, (side // window) ** 2 * batch), (side**2 + 5, batch)):
        q, k, v = torch.randn(3, count, 12, tokens, 64, device=device, dtype=dtype)
        cells = []
        for backend in ("CUDNN", "FLASH", "EFFICIENT"):
            try:
                with sdpa_kernel(getattr(SDPBackend, f"{backend}_ATTENTION")):
                    attend = partial(F.scaled_dot_product_attention, q, k, v)
                    attend()
                    seconds = min(timed(attend, torch.device(device)) for _ in range(args.runs))
                cells.append(f"{backend.lower()} {1000 * seconds:.3f} ms")
            except RuntimeError:  # not for this device, dtype or PyTorch
                cells.append(f"{backend.lower()} not available")
        lines.append(f"attention of {count} x 12 heads x {tokens} tokens: {', '.join(cells)}")
    return "\n".join(lines)


def timed(work: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def waits(args: argparse.Namespace, device: str) -> str:
    """Lines that wait for the GPU in a training step of the first config, and how often."""
    settings: dict = dict(device=device, dtype=args.dtype, threads=torch.get_num_threads())
    bench = Bench(args.configs[0], args.size, "training", max(args.batch), **settings)
    bench.run()
    if device.startswith("cuda"):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                bench.run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = [one for one in caught if "synchronizing" in str(one.message)]
        count = Counter(f"{place(one.filename)}:{one.lineno}" for one in found)
    else:
        with _WaitingOperators() as mode:
            bench.run()
        count = mode.count
    lines = [f"{number:4} {line}" for line, number in count.most_common()]
    heading = f"{sum(count.values())} waits in a training step of {args.configs[0]}"
    return "\n".join([heading, *lines])


class _WaitingOperators(TorchDispatchMode):
    """Counts operators that need values on the CPU, by the line of Python that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if name in WAITING or masked:
            stack = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
            self.count[f"{place(stack[-2].filename)}:{stack[-2].lineno} {name}"] += 1
        return func(*args, **(kwargs or {}))


def place(filename: str) -> str:
    """The last three parts of a path."""
    return "/".join(Path(filename).parts[-3:])


def write_page(page: Path, texts: list[str]) -> None:
    """Replaces what is between the marks of a page."""
    before, _, after = page.read_text(encoding="utf-8").split(MARK)
    blocks = "\n\n".join(f"```text\n{text}\n```" for text in texts)
    page.write_text(f"{before}{MARK}\n{blocks}\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
