"""Fills the tables of a GPU in docs/performance.md, in under 10 minutes on one GPU.

    python -m benchmarks.gpu_page

Backbones forward and forward + backward, next to birder and segment-anything; Mask R-CNN, RetinaNet
and DINO whole and by part; batch 1 and 8, eager and compiled; deformable attention. Where time runs
out, what is left is skipped and named.
"""

import argparse
import io
import json
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks import deformable_attention
from benchmarks.peers import PEERS
from ropevit_mmdet.apis import adapt, choose_device
from ropevit_mmdet.apis.benchmark.measure import benchmark
from ropevit_mmdet.apis.benchmark.report import table
from tests.oracle import birder_net, write_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARK = "<!-- gpu -->"
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
    texts.append(attention(args, device))
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


def write_page(page: Path, texts: list[str]) -> None:
    """Replaces what is between the marks of a page."""
    before, _, after = page.read_text(encoding="utf-8").split(MARK)
    blocks = "\n\n".join(f"```text\n{text}\n```" for text in texts)
    page.write_text(f"{before}{MARK}\n{blocks}\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
