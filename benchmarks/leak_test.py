"""Train and predict for a long time; memory and open files must not grow.

    python -m benchmarks.leak_test

Both run in processes of their own with oneDNN's caches bounded: it caches a primitive for every new
size of a feature map (pytorch/pytorch#98688).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.leak_watch import GROWTH, SETTLED, Watch, plot_watches

CONFIG = "configs/shapes_maskrcnn.py"
MAX_SIDE = 448  # pixels of the images to predict
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if neither training nor prediction grew, 1 otherwise."""
    argv = sys.argv[1:] if argv is None else [str(arg) for arg in argv]
    args = parse_args(argv)
    if args.phase:
        watch = watch_training(args) if args.phase == "training" else watch_prediction(args)
        args.samples.write_text(json.dumps(asdict(watch)))
        return 0
    directory = Path(args.work_dir)
    directory.mkdir(parents=True, exist_ok=True)
    watches = {}
    for phase in ("training", "prediction"):
        samples = directory / f"{phase}.json"
        command = [sys.executable, "-m", "benchmarks.leak_test", *argv]
        command += ["--phase", phase, "--samples", str(samples)]
        if status := subprocess.run(command, env=os.environ | ENVIRONMENT).returncode:
            return status
        watches[phase] = Watch(**json.loads(samples.read_text()))
    plot_watches(watches, directory / "leak_test.png", settled=args.settled)
    for phase, watch in watches.items():
        print(
            f"{phase}, {watch.summary(args.settled)}: {watch.growth(args.settled) or 'no growth'}"
        )
    print(f"plot: {directory / 'leak_test.png'}")
    return 1 if any(watch.growth(args.settled) for watch in watches.values()) else 0


def watch_training(args: argparse.Namespace) -> Watch:
    """Trains without validation and samples about 400 times."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from ropevit_mmdet.engine.config import load_config

    watch, every = Watch(), max(1, args.iters // 400)

    class WatchHook(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, *args, **kwargs) -> None:
            if self.every_n_train_iters(runner, every):
                watch.sample(runner.iter + 1)

    config = load_config(args.config, work_dir=args.work_dir)
    config.train_cfg.update(max_iters=args.iters, val_interval=args.iters + 1)
    for name in ("val", "test"):
        config[f"{name}_dataloader"] = config[f"{name}_cfg"] = config[f"{name}_evaluator"] = None
    runner = Runner.from_cfg(config)
    runner.register_hook(WatchHook())
    runner.train()
    return watch


def watch_prediction(args: argparse.Namespace) -> Watch:
    """Predicts noise images of random sizes, each at its own size, and samples after each."""
    import numpy as np
    from tqdm import trange

    from ropevit_mmdet.apis import Detector
    from ropevit_mmdet.compat.config import type_name
    from ropevit_mmdet.engine.config import load_config
    from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint

    config = load_config(args.config, work_dir=args.work_dir)
    dataset = config.test_dataloader.dataset
    dataset.pipeline = [
        {"type": step["type"], "scale_factor": 1.0} if type_name(step) == "Resize" else step
        for step in dataset.pipeline
    ]
    detector = Detector(str(latest_checkpoint(Path(args.work_dir))), config=config)
    watch, random = Watch(), np.random.default_rng(0)
    for step in trange(1, args.images + 1, desc="predicting", unit="image", disable=None):
        height, width = random.integers(16, MAX_SIDE, 2)
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        detector(image, score_thr=0.05)
        watch.sample(step)
    return watch


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=CONFIG, help=f"default: {CONFIG}")
    parser.add_argument("--iters", type=int, default=2000, help="of training (default: 2000)")
    parser.add_argument("--images", type=int, default=500, help="to predict (default: 500)")
    parser.add_argument(
        "--settled",
        type=int,
        default=SETTLED,
        metavar="N",
        help=f"growth by more than {GROWTH:.0%} after N steps is an error (default: {SETTLED})",
    )
    parser.add_argument("--work-dir", default="work_dirs/leak_test", help="log and leak_test.png")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if min(args.iters, args.images) <= args.settled:
        parser.error("--iters and --images must be more than --settled")
    return args


if __name__ == "__main__":
    sys.exit(main())
