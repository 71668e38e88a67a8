"""Measure what the recipes promise on the synthetic shapes: docs/recipes.md has the results.

    python -m benchmarks.recipes --jobs 2

birder's script pretrains a tiny RoPE ViT on crops of other shapes; the runs fine-tune it for
detection. Started again, the command continues where it was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from benchmarks.crops import crop_objects
from ropevit_mmdet.apis.compare.experiment import Run, mean_and_spread, result_of
from ropevit_mmdet.datasets.shapes import dataset as shapes
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import one_line_errors

SMALL, LARGE, OTHER = (
    f"configs/shapes_{name}.py" for name in ("transfer", "transfer_448", "resnet18")
)
NETWORK = "rope_vit_reg4_b14"
EPOCHS = 8
PRETRAINING = f"""--network {NETWORK} --tag shapes --device cpu --batch-size 64
    --opt adamw --lr 5e-4 --wd 0.05 --clip-grad-norm 1 --aug-level 0 --save-frequency 1 --seed 0
    --lr-scheduler cosine --lr-scheduler-update step --warmup-steps 100
    --num-workers 1 --non-interactive --no-summary
    --data-path classes/train --val-path classes/val"""
FROZEN = {"model.backbone.frozen_stages": 6}
QUARTERS = (0, 2, 3, 5)  # blocks, the last of each quarter
DECAY = "optim_wrapper.paramwise_cfg.layer_decay_rate"
DECAYS = (1.0, 0.9, 0.8, 0.7)
AT_448 = {  # settings to fine-tune a detector that was trained at 224 pixels
    "windows, tile, interpolation": {},
    "windows, tile, no interpolation": {"rope_interpolation": 224},
    "windows, interpolate, interpolation": {"pos_embed_mode": "interpolate"},
    "global, tile, interpolation": {"window_size": None},
}
PADDINGS = {"own aspect": 28, "square": 224}
COORDINATES = {"fixed": 224, "fitted": "pretrain"}
TRIAL = 100  # iterations to measure the time of one
SECTIONS = {  # of the report: title -> method of `Recipes`
    "From scratch, transferred, frozen": "transfer",
    "Frozen backbones: one map or four": "feature_maps",
    "Layer decay": "layer_decay",
    "448 pixels": "at_448",
    "Non-square images": "padding",
    "Equal time": "resnet",
}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        recipes = Recipes(args.root.resolve(), args.seeds, args.jobs)
        try:
            recipes.start_from(None)
            for title in args.only or SECTIONS:
                getattr(recipes, SECTIONS[title])(title)
            report = recipes.report()
        finally:
            recipes.pool.shutdown(cancel_futures=True)
    if not args.only:
        (recipes.root / "report.md").write_text(report, encoding="utf-8")
    print(report)


class Recipes:
    """All runs in a directory; `rows` collects the runs of each row of the report."""

    def __init__(self, root: Path, seeds: int, jobs: int) -> None:
        self.root, self.seeds = root, range(seeds)
        self.data, self.non_square = root / "shapes", root / "non-square"
        self.checkpoint = root / "models" / f"{NETWORK}_shapes_{EPOCHS}.pt"
        self.config = load_config(SMALL)
        self.rows: dict[str, dict[str, list[Future]]] = {}
        self.started: dict[str, Future] = {}
        self.pool = ThreadPoolExecutor(jobs)
        if jobs > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        root.mkdir(parents=True, exist_ok=True)

    def start_from(self, weights: Path | None) -> None:
        """Makes the images; the backbone's weights are those of a checkpoint, or pretrained."""
        if weights:
            self.checkpoint = weights.resolve()
            shapes.generate(self.data)
        else:
            self.make_data()
            self.pretrain()

    def make_data(self) -> None:
        log("generating the datasets")
        shapes.generate(self.data)
        shapes.generate(self.non_square, num_train=0, num_val=0, non_square=1.0, seed=2)
        other = self.root / "pretrain_shapes"
        shapes.generate(other, num_train=12000, num_val=300, num_test=0, seed=1)
        side = self.config.model.backbone.pretrain_img_size
        for split in ("train", "val"):
            ann_file = other / "annotations" / f"instances_{split}.json"
            crop_objects(other / split, ann_file, self.root / "classes" / split, side=side)

    def pretrain(self) -> None:
        """Runs birder's training script from its newest intact checkpoint: it writes in place."""
        intact = [
            int(file.stem.split("_")[-1])
            for file in self.checkpoint.parent.glob(f"{NETWORK}_shapes_*[0-9].pt")
            if zipfile.is_zipfile(file) and zipfile.is_zipfile(f"{file.with_suffix('')}_states.pt")
        ]
        newest = max(intact, default=0)
        if newest == EPOCHS:
            return
        arch = self.config.model.backbone.arch.to_dict()
        del arch["pt_grid_size"]  # only for the detector: a crop is a part of its images
        command = [sys.executable, "-m", "birder.scripts.train", *PRETRAINING.split()]
        command += ["--model-config", json.dumps(arch), "--epochs", str(EPOCHS)]
        command += ["--size", str(self.config.model.backbone.pretrain_img_size)]
        command += ["--resume-epoch", str(newest), "--load-states"] if newest else []
        path = self.root / "pretrain.txt"
        log(f"pretraining with birder, log in {path}")
        with path.open("a", encoding="utf-8") as file:
            status = subprocess.run(command, cwd=self.root, stdout=file, stderr=file).returncode
        if status or not self.checkpoint.is_file():
            sys.exit(f"error: birder's training failed, see {path}")

    def transfer(self, title: str) -> None:
        for seed in self.seeds:
            self.run(title, "from scratch", SMALL, {DECAY: 1.0}, seed)
            self.run(title, "transferred", SMALL, self.pretrained(), seed)
            self.run(title, "frozen probe", SMALL, self.frozen(), seed)

    def feature_maps(self, title: str) -> None:
        channels = self.config.model.neck.in_channels
        for seed in self.seeds:
            self.run(title, "frozen probe", SMALL, self.frozen(), seed, shown="one map, the last")
            for fuse in ("concat", "sum"):
                options = self.frozen() | {
                    "model.backbone.out_indices": QUARTERS,
                    "model.neck.in_channels": [channels] * len(QUARTERS),
                    "model.neck.fuse": fuse,
                }
                name = f"frozen probe {fuse}"
                self.run(title, name, SMALL, options, seed, shown=f"four maps, fuse='{fuse}'")

    def layer_decay(self, title: str) -> None:
        own = self.config.optim_wrapper.paramwise_cfg.layer_decay_rate
        for rate in DECAYS:
            for seed in self.seeds:
                name = "transferred" if rate == own else f"layer decay {rate}"
                options = self.pretrained() | ({} if rate == own else {DECAY: rate})
                self.run(title, name, SMALL, options, seed, shown=str(rate))

    def at_448(self, title: str) -> None:
        self.finish_transferred()
        for name, settings in AT_448.items():
            for seed in self.seeds:
                options = {f"model.backbone.{key}": value for key, value in settings.items()}
                options["load_from"] = self.detector("transferred", seed)
                self.run(title, f"448 {name}", LARGE, options, seed, shown=name)

    def padding(self, title: str) -> None:
        self.finish_transferred()
        for padding, divisor in PADDINGS.items():
            for coordinates, value in COORDINATES.items():
                for seed in self.seeds:
                    options = tested_on(self.non_square) | {
                        "model.data_preprocessor.pad_size_divisor": divisor,
                        "model.backbone.rope_interpolation": value,
                        "load_from": self.detector("transferred", seed),
                    }
                    name = f"{padding}, {coordinates}"
                    self.run(title, f"non-square {name}", SMALL, options, seed,
                             trains=False, shown=name)  # fmt: skip

    def resnet(self, title: str) -> None:
        """Trains ResNet-18 for as long as the transferred run, according to two short runs."""
        transferred = self.pretrained()
        short = {f"train_cfg.{key}": TRIAL for key in ("max_iters", "val_interval")}
        pairs = ((SMALL, transferred), (OTHER, {}))
        trials = [
            self.run(None, f"trial {Path(config).stem}", config, options | short, 0)
            for config, options in pairs
        ]
        ours, other = (trial.result()["train_seconds"] for trial in trials)
        iterations = self.config.train_cfg.max_iters
        count = round(iterations * ours / other / 50) * 50
        options = {f"train_cfg.{key}": count for key in ("max_iters", "val_interval")}
        options["param_scheduler.1.end"] = count
        for seed in self.seeds:
            self.run(title, "transferred", SMALL, transferred, seed)
            self.run(title, "resnet18", OTHER, options, seed, shown="ResNet-18, FPN")

    def run(
        self,
        title: str | None,
        name: str,
        config: str,
        options: dict,
        seed: int,
        *,
        trains: bool = True,
        shown: str | None = None,
    ) -> Future:
        data = tested_on(self.data) | {
            f"val_{part}": None for part in ("cfg", "dataloader", "evaluator")
        }
        if trains:
            data["train_dataloader.dataset.data_root"] = str(self.data)
        run = Run(dashed(name), config, data | options, seed, trains)
        if run.directory not in self.started:
            self.started[run.directory] = self.pool.submit(result_of, run, self.root / "runs", log)
        if title is not None:
            rows = self.rows.setdefault(title, {}).setdefault(shown or name, [])
            rows.append(self.started[run.directory])
        return self.started[run.directory]

    def finish_transferred(self) -> None:
        """Waits for the detectors that the next section starts from."""
        for seed in self.seeds:
            self.run(None, "transferred", SMALL, self.pretrained(), seed)
        for future in self.started.values():
            future.result()

    def pretrained(self) -> dict:
        checkpoint = {"_delete_": True, "type": "Pretrained", "checkpoint": str(self.checkpoint)}
        return {"model.backbone.init_cfg": checkpoint}

    def frozen(self) -> dict:
        return self.pretrained() | FROZEN | {DECAY: 1.0}

    def directory(self, name: str, seed: int) -> Path:
        return self.root / "runs" / Run(dashed(name), "", seed=seed).directory

    def detector(self, name: str, seed: int) -> str:
        iterations = self.config.train_cfg.max_iters
        return str(self.directory(name, seed) / f"iter_{iterations}.pth")

    def report(self) -> str:
        lines = []
        for title, rows in self.rows.items():
            lines += [f"## {title}", "", "| | box AP | mask AP | iterations | training, s |"]
            lines += ["|---|---|---|---|---|"]
            for name, futures in rows.items():
                cells, results = [name], [future.result() for future in futures]
                for key in ("coco/bbox_mAP", "coco/segm_mAP"):
                    values = [result["metrics"][key] for result in results]
                    mean, spread = mean_and_spread(values)
                    cells.append(f"{mean:.3f} ± {spread:.3f}")
                cells.append(str(results[0]["iterations"] or ""))
                seconds = mean_and_spread([result["train_seconds"] for result in results])[0]
                cells.append(f"{seconds:.0f}" if seconds else "")
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
        return "\n".join(lines)


def dashed(name: str) -> str:
    """The name of a run as one of a directory."""
    return name.replace(", ", "-").replace(" ", "-")


def ap_cell(values: list[float]) -> str:
    """AP of several seeds in percent: the mean, and half the distance of the extremes."""
    return "{:.1f} ± {:.1f}".format(*mean_and_spread(values)) if values else ""


def log(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")


def tested_on(root: Path) -> dict[str, str]:
    """Config options: the test images of a shapes dataset."""
    ann_file = root / "annotations" / "instances_test.json"
    return {
        "test_dataloader.dataset.data_root": str(root),
        "test_evaluator.ann_file": str(ann_file),
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("work_dirs/recipes"), help="directory")
    parser.add_argument("--seeds", type=int, default=2, help="runs per row (default: 2)")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs (default: 1)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        metavar="TITLE",
        help=f"only these tables and the runs that they start from: {'; '.join(SECTIONS)}",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
