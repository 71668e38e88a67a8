"""Adapts one config of every directory of mmdet's `configs/`, and writes docs/detectors.md.

`python -m benchmarks.detectors` takes half an hour on one core and resumes where it was
interrupted. Each config is adapted to a tiny RoPE ViT with random weights, takes a training step on
synthetic data with finite losses and a gradient in every backbone parameter, and predicts. Where
that fails, the config does the same with its own backbone and random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmengine.config import Config

import ropevit_mmdet  # noqa: F401  (prepares the mm stack)
from ropevit_mmdet.apis.adaptation import adapt, check_training, read_config
from ropevit_mmdet.errors import UserError
from tests.oracle import birder_net, write_checkpoint

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
PAGE = Path(__file__).parents[1] / "docs" / "detectors.md"
SECONDS = 600  # per config
# Where the shortest name with a ResNet-50 is not that of the directory's own detector.
CHOSEN = {
    "bytetrack": "yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval",
    "carafe": "mask-rcnn_r50_fpn-carafe_1x_coco",
    "cascade_rpn": "cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco",
    "centernet": "centernet_r18_8xb16-crop512-140e_coco",
    "dcn": "faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "dcnv2": "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "detectors": "detectors_cascade-rcnn_r50_1x_coco",
    "groie": "faste-rcnn_r50_fpn_groie_1x_coco",
    "guided_anchoring": "ga-faster-rcnn_r50_fpn_1x_coco",
    "hrnet": "faster-rcnn_hrnetv2p-w18-1x_coco",
    "libra_rcnn": "libra-faster-rcnn_r50_fpn_1x_coco",
    "nas_fpn": "retinanet_r50_nasfpn_crop640-50e_coco",
    "pvt": "retinanet_pvt-t_fpn_1x_coco",
    "res2net": "faster-rcnn_res2net-101_fpn_2x_coco",
    "sort": "faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval",
    "rtmdet": "rtmdet_tiny_8xb32-300e_coco",
    "v3det": "faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x",
    "yolox": "yolox_s_8xb8-300e_coco",
}
NOT_APPLICABLE = "cannot adapt|defines no model"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", help="names under configs/ (default: the table)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/detectors"))
    arguments = parser.parse_args(argv)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    weights = tiny_weights(arguments.work_dir)
    done = arguments.work_dir / "results.json"
    results = json.loads(done.read_text()) if done.is_file() else {}
    names = arguments.configs or rows()
    for index, name in enumerate(names):
        if name not in results:
            results[name] = trial(name, weights)
            done.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{index + 1} of {len(names)}: {name}: {results[name]['result']}", flush=True)
    if not arguments.configs:
        write_page({name: results[name] for name in names})


def tiny_weights(directory: Path) -> str:
    """A checkpoint of birder's smallest RoPE ViT with patches of 14 pixels, with random weights."""
    return str(write_checkpoint(birder_net("rope_vit_t14"), directory.resolve()))


def rows() -> list[str]:
    """One config per directory: the one in `CHOSEN`, or the shortest name, with a ResNet-50."""
    names = []
    for directory in sorted(path for path in CONFIGS.iterdir() if path.name != "_base_"):
        files = [f.relative_to(CONFIGS).with_suffix("") for f in directory.rglob("*.py")]
        files.sort(key=lambda f: ("r50" not in f.name, len(f.parts), len(f.name), f.name))
        names.append(f"{directory.name}/{CHOSEN.get(directory.name, files[0].name)}")
    return names


def trial(name: str, weights: str) -> dict[str, Any]:
    """Whether a config works with a RoPE ViT, and if not why."""
    started = time.monotonic()
    row = dict(detector=detector(name))
    error = in_process(_adapted, name, weights)
    if not error:
        row["result"] = "works"
    elif re.search(NOT_APPLICABLE, error):
        row["result"] = f"not applicable: {error.partition(': ')[2] or 'no model'}"
    else:
        own = in_process(_own, name)
        row["result"] = f"upstream: {own}" if own else f"fails: {error}"
    return row | dict(seconds=round(time.monotonic() - started))


def detector(name: str) -> str:
    """The detector's class and its necks."""
    try:
        model = read_config(f"mmdet::{name}")[0]["model"]
    except UserError:
        return ""
    model = model.get("detector", model)
    necks = model.get("neck") or []
    names = [one.get("type", "") for one in (necks if isinstance(necks, list) else [necks])]
    return " + ".join([model.get("type", ""), *names])


def in_process(function: Callable[..., None], *arguments: str) -> str:
    """Calls a function in a new process; returns the error, '' if there is none."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers, function, *arguments))
    process.start()
    stop, error = time.monotonic() + SECONDS, None
    while error is None and time.monotonic() < stop and (process.is_alive() or not answers.empty()):
        with contextlib.suppress(queue.Empty):
            error = answers.get(timeout=1)
    process.kill()
    process.join()
    return f"no result in {SECONDS} s, exit status {process.exitcode}" if error is None else error


def _answer(answers: multiprocessing.Queue, function: Callable, *arguments: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.chdir(CONFIGS.parent)  # where mmdet's configs of distillation look for their teachers
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            function(*arguments)
            answers.put("")
        except Exception as error:
            cause = error.__cause__ or error
            text = (
                str(error) if isinstance(error, UserError) else f"{type(cause).__name__}: {cause}"
            )
            answers.put(" ".join(text.split())[:300])


def _adapted(name: str, weights: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = adapt(f"mmdet::{name}", weights, out=Path(directory) / "adapted.py")
    check_training(config, predict=True)


def _own(name: str) -> None:
    settings, _ = read_config(f"mmdet::{name}")
    check_training(Config(settings), predict=True, sizes=((320, 320),) * 2)  # SSD needs 300


def write_page(results: dict[str, dict[str, Any]]) -> None:
    """Replaces the table of docs/detectors.md."""
    lines = ["| directory | config | detector and necks | result |", "|---|---|---|---|"]
    for name, row in results.items():
        directory, _, config = name.partition("/")
        result = row["result"].replace("|", "\\|")
        lines.append(f"| {directory} | `{config}` | {row['detector']} | {result} |")
    count = [sum(r["result"].startswith(s) for r in results.values()) for s in STATES]
    total = ", ".join(f"{n} {state.rstrip(':')}" for n, state in zip(count, STATES, strict=True))
    table = "\n".join([f"Of {len(results)} directories: {total}.", "", *lines])
    text = PAGE.read_text(encoding="utf-8")
    mark = "<!-- table -->"
    before, _, after = text.split(mark)
    PAGE.write_text(f"{before}{mark}\n{table}\n{mark}{after}", encoding="utf-8")


STATES = ("works", "upstream:", "not applicable:", "fails:")


if __name__ == "__main__":
    main()
