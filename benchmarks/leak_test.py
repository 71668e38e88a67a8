"""Train and predict for long while memory and open files are watched: they must not grow.

Prediction has a process of its own, which cannot grow into what a training left.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from tqdm import tqdm

from ropevit_mmdet.apis.leak_test import (
    GROWTH,
    SETTLED,
    Watch,
    plot_soak,
    soak_prediction,
    soak_training,
)
from ropevit_mmdet.datasets.checked_coco import check_datasets
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.engine.hooks.resumable_checkpoint_hook import latest_checkpoint
from ropevit_mmdet.engine.work_dir_lock import lock_work_dir
from ropevit_mmdet.errors import one_line_errors

CONFIG = "configs/shapes_maskrcnn.py"


def main(argv: Sequence[str] | None = None) -> int:
    """0 if neither training nor prediction grew, 1 if one did."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    with one_line_errors():
        config = load_config(args.config, args.cfg_options, work_dir=args.work_dir)
        directory = Path(config.work_dir)
        if args.predict_into:
            checkpoint = str(latest_checkpoint(directory))
            watch = soak_prediction(config, checkpoint, args.images, progress=with_bar)
            args.predict_into.write_text(json.dumps(vars(watch)))
            return 0
        with lock_work_dir(directory):
            check_datasets(config, ("train",))
            watches = {"training": soak_training(config, args.iters)}
            watches["prediction"] = in_own_process(argv, directory / "prediction.json")
            plot_soak(watches, directory / "soak.png", settled=args.settled)
    for name, watch in watches.items():
        grown = watch.growth(args.settled)
        print(f"{name}: {watch.summary(args.settled)}{f': {grown} is growth' if grown else ''}")
    print(f"plot: {directory / 'soak.png'}")
    return 1 if any(watch.growth(args.settled) for watch in watches.values()) else 0


def in_own_process(argv: Sequence[str], samples: Path) -> Watch:
    """The prediction, watched by a process that has done nothing else."""
    command = [sys.executable, __file__, *argv, "--predict-into", str(samples)]
    if status := subprocess.run(command).returncode:
        sys.exit(status)
    watch = Watch()
    vars(watch).update(json.loads(samples.read_text()))
    return watch


def with_bar(items: range) -> tqdm:
    return tqdm(items, desc="predicting", unit="image", disable=None)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=CONFIG, help=f"default: {CONFIG}")
    parser.add_argument("--iters", type=int, default=2000, help="of training (default: 2000)")
    parser.add_argument("--images", type=int, default=500, help="to predict (default: 500)")
    parser.add_argument(
        "--settled",
        type=int,
        default=SETTLED,
        metavar="N",
        help=f"growth of more than {GROWTH:.0%} after this many steps is an error "
        f"(default: {SETTLED})",
    )
    parser.add_argument(
        "--work-dir", default="work_dirs/soak", help="log and soak.png (default: work_dirs/soak)"
    )
    parser.add_argument("--predict-into", type=Path, help=argparse.SUPPRESS)
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    for name in ("iters", "images"):
        if getattr(args, name) <= args.settled:
            parser.error(f"--{name} {getattr(args, name)} must be more than --settled")
    if not Path("/proc/self/statm").exists():
        parser.error("memory and open files are read from /proc, which this system does not have")
    return args


if __name__ == "__main__":
    sys.exit(main())
