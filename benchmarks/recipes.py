"""Measure what the recipes promise, on the embedded shapes: docs/recipes.md has its figures.

birder's own script pretrains a tiny RoPE ViT on a classification set cut from other shapes; it is
then fine-tuned for detection in all the ways that are compared. Every run keeps its result in a
directory of its own: started again, the tool continues where it was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from ropevit_mmdet.apis.compare.experiment import Run, execute, mean_and_spread, result_of
from ropevit_mmdet.compat.reading import archive_is_whole
from ropevit_mmdet.datasets.shapes import dataset as shapes
from ropevit_mmdet.datasets.shapes.crops import cut_objects
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
DECAY = "optim_wrapper.paramwise_cfg.layer_decay_rate"
DECAYS = (1.0, 0.9, 0.8, 0.7)
AT_448 = {  # what a detector trained at 224 pixels is fine-tuned to
    "windows, tile, interpolation": {},
    "windows, tile, no interpolation": {"rope_interpolation": 224},
    "windows, interpolate, interpolation": {"pos_embed_mode": "interpolate"},
    "global, tile, interpolation": {"window_size": None},
}
PADDINGS = {"own aspect": 28, "square": 224}
COORDINATES = {"fixed": 224, "fitted": "pretrain"}
TRIAL = 100  # iterations that tell how long one takes
SECTIONS = {  # of the report; their methods of `Proof`
    "From scratch, transferred, frozen": "transfer",
    "Layer decay": "layer_decay",
    "448 pixels": "at_448",
    "Non-square images": "padding",
    "Equal time": "resnet",
}


def main() -> None:
    args = parse_args()
    if args.execute:
        with one_line_errors():
            return execute(args.execute)
    proof = Proof(args.root.resolve(), args.seeds, args.jobs)
    try:
        proof.make_data()
        proof.pretrain()
        for title in args.only or SECTIONS:
            getattr(proof, SECTIONS[title])(title)
        report = proof.report()
    finally:
        proof.pool.shutdown(cancel_futures=True)
    if not args.only:
        (proof.root / "report.md").write_text(report, encoding="utf-8")
    print(report)


class Proof:
    """All runs, in a directory; ``rows`` collects what the report shows of them.

    ``jobs`` runs are under way at a time, each with its share of the cores: two cores get a third
    more done of networks this small as two processes than as two threads.
    """

    def __init__(self, root: Path, seeds: int, jobs: int) -> None:
        self.root, self.seeds = root, range(seeds)
        self.data, self.non_square = root / "shapes", root / "non-square"
        self.cut_side = load_config(SMALL).model.backbone.pretrain_img_size  # pixels
        self.rows: dict[str, dict[str, list[Future]]] = {}
        self.started: dict[str, Future] = {}
        self.pool = ThreadPoolExecutor(jobs)
        if jobs > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        root.mkdir(parents=True, exist_ok=True)

    def make_data(self) -> None:
        self.say("drawing the datasets")
        shapes.generate(self.data)
        shapes.generate(self.non_square, num_train=0, num_val=0, non_square=1.0, seed=2)
        other = self.root / "pretrain_shapes"
        shapes.generate(other, num_train=12000, num_val=300, num_test=0, seed=1)
        for split in ("train", "val"):
            ann_file = other / "annotations" / f"instances_{split}.json"
            directory = self.root / "classes" / split
            cut_objects(other / split, ann_file, directory, side=self.cut_side)

    def pretrain(self) -> None:
        """Runs birder's training script, from its newest checkpoint on."""
        models = self.root / "models"
        self.checkpoint = models / f"{NETWORK}_shapes_{EPOCHS}.pt"
        # birder writes in place, the weights first, then the states that it resumes from.
        whole = [
            int(file.stem.split("_")[-1])
            for file in models.glob(f"{NETWORK}_shapes_*[0-9].pt")
            if archive_is_whole(file) and archive_is_whole(f"{file.with_suffix('')}_states.pt")
        ]
        newest = max(whole, default=0)
        if newest == EPOCHS:
            return
        arch = load_config(SMALL).model.backbone.arch.to_dict()
        del arch["pt_grid_size"]  # of the detector: a cut is a piece of its images
        command = [sys.executable, "-m", "birder.scripts.train", *PRETRAINING.split()]
        command += ["--model-config", json.dumps(arch), "--size", str(self.cut_side)]
        command += ["--epochs", str(EPOCHS)]
        command += ["--resume-epoch", str(newest), "--load-states"] if newest else []
        log = self.root / "pretrain.txt"
        self.say(f"pretraining by birder, log in {log}")
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(command, cwd=self.root, stdout=file, stderr=file).returncode
        if code or not self.checkpoint.is_file():
            sys.exit(f"error: birder's training failed, see {log}")

    def transfer(self, title: str) -> None:
        for seed in self.seeds:
            self.run(title, "from scratch", SMALL, {DECAY: 1.0}, seed)
            self.run(title, "transferred", SMALL, self.pretrained(), seed)
            frozen = {"model.backbone.frozen_stages": 6, DECAY: 1.0}
            self.run(title, "frozen probe", SMALL, self.pretrained() | frozen, seed)

    def layer_decay(self, title: str) -> None:
        own = load_config(SMALL).optim_wrapper.paramwise_cfg.layer_decay_rate
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
        """As many iterations as take the time of the transferred run's, by two short runs."""
        transferred = self.pretrained()
        trial = {f"train_cfg.{key}": TRIAL for key in ("max_iters", "val_interval")}
        pairs = ((SMALL, transferred), (OTHER, {}))
        trials = [
            self.run(None, f"trial {Path(config).stem}", config, options | trial, 0)
            for config, options in pairs
        ]
        ours, other = (result_or_exit(one)["train_seconds"] for one in trials)
        iterations = load_config(SMALL).train_cfg.max_iters
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
        directory = name.replace(", ", "-").replace(" ", "-")
        run = Run(directory, config, data | options, seed, trains)
        if run.directory not in self.started:
            command = [sys.executable, __file__, "--execute"]
            self.started[run.directory] = self.pool.submit(
                result_of, run, self.root / "runs", command, self.say
            )
        if title is not None:
            rows = self.rows.setdefault(title, {}).setdefault(shown or name, [])
            rows.append(self.started[run.directory])
        return self.started[run.directory]

    def finish_transferred(self) -> None:
        """Wait for the detectors that what comes next starts from, and all that is under way."""
        for seed in self.seeds:
            self.run(None, "transferred", SMALL, self.pretrained(), seed)
        for one in self.started.values():
            result_or_exit(one)

    def pretrained(self) -> dict:
        checkpoint = {"_delete_": True, "type": "Pretrained", "checkpoint": str(self.checkpoint)}
        return {"model.backbone.init_cfg": checkpoint}

    def detector(self, name: str, seed: int) -> str:
        iterations = load_config(SMALL).train_cfg.max_iters
        return str(self.root / "runs" / f"{name}-seed{seed}" / f"iter_{iterations}.pth")

    def report(self) -> str:
        lines = []
        for title, rows in self.rows.items():
            lines += [f"## {title}", "", "| | box AP | mask AP | iterations | training, s |"]
            lines += ["|---|---|---|---|---|"]
            for name, futures in rows.items():
                cells, results = [name], [result_or_exit(one) for one in futures]
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

    def say(self, message: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")


def result_or_exit(one: Future) -> dict:
    try:
        return one.result()
    except ValueError as error:
        sys.exit(f"error: {error}")


def tested_on(root: Path) -> dict[str, str]:
    """Config options: the test images of a shapes dataset."""
    ann_file = root / "annotations" / "instances_test.json"
    return {
        "test_dataloader.dataset.data_root": str(root),
        "test_evaluator.ann_file": str(ann_file),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("work_dirs/recipes"), help="directory")
    parser.add_argument("--seeds", type=int, default=2, help="runs of everything that is compared")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        metavar="TITLE",
        help=f"some of the report's tables, with what they start from: {'; '.join(SECTIONS)}",
    )
    parser.add_argument("--execute", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
