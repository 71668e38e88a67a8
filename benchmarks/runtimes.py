"""Latency of exported detectors by runtime and precision: docs/export.md has the table.

    python -m benchmarks.runtimes retinanet maskrcnn --pixels 448 --threads 1

Detectors of `configs/ropevit_NAME.py` with random weights, one image per call, every cell of the
table in one process and interleaved: median and quartile spread of the milliseconds. int8 has the
ranges of random images: the table is about speed. A cell that a runtime cannot run names why.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ropevit_mmdet.apis.benchmark.measure import device_name
from ropevit_mmdet.deploy import onnx, torch_export
from ropevit_mmdet.deploy.check import example_images, predict
from ropevit_mmdet.deploy.detector import DynamicDetector
from ropevit_mmdet.deploy.features import min_side
from ropevit_mmdet.deploy.heads import output_settings
from ropevit_mmdet.deploy.precision import Reduction
from ropevit_mmdet.engine.config import build_detector, load_config
from ropevit_mmdet.engine.float32_decoding import float32_decoding

PRECISIONS = ("fp32", "bf16", "int8", "int8 dynamic")
CANDIDATES = 1000  # above the score threshold


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="retinanet, maskrcnn ...: of ropevit_NAME.py")
    parser.add_argument("--pixels", type=int, default=448, help="side of the images (default: 448)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--runs", type=int, default=10, help="timed rounds (default: 10)")
    parser.add_argument("--options", nargs="*", default=[], help="KEY=VALUE of the configs")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/runtimes.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images = example_images((args.pixels, args.pixels))
    cells = {
        (name, *key): cell
        for name in args.names
        for key, cell in cells_of(name, images, args.options).items()
    }
    rows = measured(cells, args.runs)
    versions = dict(torch=torch.__version__, onnxruntime=onnxruntime.__version__)
    report = dict(device=device_name("cpu"), threads=args.threads, pixels=args.pixels, **versions)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report | dict(rows=rows), indent=1) + "\n", encoding="utf-8")
    print(f"{report}\n\n{table(rows)}")


def cells_of(name: str, images: torch.Tensor, options: list[str]) -> dict:
    """What runs the images in each (runtime, precision), or the text that says why nothing does."""
    model = random_detector(name, images, options)
    graph = DynamicDetector(model).eval()
    options = dict(dynamic_batch=False, dynamic_size=False)
    program = torch_export.trace(graph, images, min_side(model), **options)
    data = onnx.to_bytes(program, graph.outputs, {})
    files = {
        "fp32": data,
        "bf16": data,
        "int8": Reduction(data, "int8", [images]).file(),
        "int8 dynamic": Reduction(data, "int8").file(),
    }

    def bfloat16() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return predict(model, images)

    cells: dict = {("PyTorch", "fp32"): lambda: predict(model, images)}
    cells |= {("PyTorch", "bf16"): bfloat16}
    cells |= {("PyTorch", precision): "not exported" for precision in ("int8", "int8 dynamic")}
    for precision, file in files.items():
        provider = "openvino:bf16" if precision == "bf16" else "openvino"
        cells["OpenVINO", precision] = opened(file, provider, images)
        if precision != "bf16":
            cells["ONNX Runtime", precision] = opened(file, onnx.CPU, images)
    return cells | {("ONNX Runtime", "bf16"): "no bfloat16 kernels on a CPU"}


def random_detector(name: str, images: torch.Tensor, options: list[str]) -> torch.nn.Module:
    """A detector with random weights; its score threshold leaves `CANDIDATES` to NMS."""
    config = load_config(f"ropevit_{name}", options)
    config.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = build_detector(config).eval()
    float32_decoding(model)
    changes = dict(score_thr=0.0, nms=None, max_per_img=CANDIDATES)
    (best,) = predict(model, images, masks=False, **changes)
    output_settings(model).score_thr = float(best.scores.min())
    return model


def opened(file: bytes, provider: str, images: torch.Tensor) -> Callable[[], object] | str:
    """What runs a file, after a first run; or why the runtime cannot."""
    try:
        run = onnx.runner(file, provider)
        run(images, None)
    except Exception as error:  # each runtime has its own
        return f"{type(error).__name__}: {error}".strip().splitlines()[0][:80]
    return lambda: run(images, None)


def measured(cells: dict, runs: int) -> list[dict]:
    """Times all cells `runs` times, interleaved, after a warm-up round."""
    seconds: dict = {key: [] for key, cell in cells.items() if not isinstance(cell, str)}
    for key in itertools.chain.from_iterable(itertools.repeat(list(seconds), 1 + runs)):
        start = time.perf_counter()
        cells[key]()
        seconds[key].append(1000 * (time.perf_counter() - start))
    rows = []
    for key, cell in cells.items():
        row = dict(zip(("detector", "runtime", "precision"), key))
        if key in seconds:
            low, median, high = np.percentile(seconds[key][1:], [25, 50, 75]).tolist()
            rows.append(row | dict(median=median, spread=high - low))
        else:
            rows.append(row | dict(why=cell))
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: a line per detector and runtime, a column per precision."""
    lines = [f"| ms per image | {' | '.join(PRECISIONS)} |", "|---" * (1 + len(PRECISIONS)) + "|"]
    keys = dict.fromkeys((row["detector"], row["runtime"]) for row in rows)
    for detector, runtime in keys:
        own = {
            r["precision"]: r for r in rows if (r["detector"], r["runtime"]) == (detector, runtime)
        }
        texts = [
            f"{one['median']:.0f} ± {one['spread']:.0f}" if "median" in one else one["why"]
            for one in map(own.get, PRECISIONS)
        ]
        lines.append(f"| {detector}, {runtime} | {' | '.join(texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
