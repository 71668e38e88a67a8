"""Trains detectors on photos for equal time, and writes tables and overlays.

    python -m benchmarks.photos --data DIR --minutes 15

DIR has a directory per dataset, in COCO's format: docs/first_hour.md says where two are from. All
detectors get the same photos, augmentation, optimizer and time; their schedule follows from a short
trial. Started again, the command resumes.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from benchmarks.heads import schedule, use_cost_hook
from benchmarks.photos import detectors, peers  # noqa: F401  (registers PeerDetector)
from benchmarks.photos.arms import ARMS, RATES, mild
from benchmarks.photos.datasets import Photos, read_photos, tested_on
from benchmarks.recipes import ap_cell, log
from ropevit_mmdet.apis import Detector
from ropevit_mmdet.apis.compare.experiment import Run, result_of
from ropevit_mmdet.apis.predict import predict_files
from ropevit_mmdet.engine.hooks import latest_checkpoint
from ropevit_mmdet.errors import one_line_errors

TRIAL = 30  # iterations that measure the time of one
OVERLAYS = 12  # photos
COLUMNS = {
    "val box AP": ("val", "bbox_mAP"),
    "val AP50": ("val", "bbox_mAP_50"),
    "val mask AP": ("val", "segm_mAP"),
    "test box AP": ("test", "bbox_mAP"),
    "test mask AP": ("test", "segm_mAP"),
}


class Budget(NamedTuple):
    """What every run gets: wall time, as CPU time if there is one thread; see `heads.CostHook`."""

    minutes: float
    threads: int
    seeds: int


class Variant(NamedTuple):
    """A row: a detector, and the recipe that it is trained by."""

    name: str
    photos: Photos
    build: Callable[[Photos], Config]
    arm: Callable[[Config, Photos], None]

    def config(self) -> Config:
        config = self.build(self.photos)
        self.arm(config, self.photos)
        use_cost_hook(config)
        return config


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    budget, root, texts = Budget(args.minutes, args.threads, args.seeds), args.root.resolve(), []
    weights = args.weights.resolve() if args.weights else None
    with one_line_errors():
        for name in args.dataset:
            photos = read_photos((args.data / name).resolve(), args.size)
            for section in args.only:
                place = root / f"{name}-{args.size}" / section
                chosen = [v for v in variants(section, photos, weights) if args.match in v.name]
                rows = [compared(variant, place, budget) for variant in chosen]
                texts.append(f"## {name}, {section}, {args.minutes:g} minutes\n\n{table(rows)}\n")
                place.with_suffix(".md").write_text(texts[-1], encoding="utf-8")
    print("\n".join(texts))


def variants(section: str, photos: Photos, weights: Path | None) -> Iterator[Variant]:
    """The variants of a section: EoMT only where there are masks, Faster R-CNN where not."""
    if section == "large":
        build = partial(detectors.large, weights=weights)
        for name, arm in RATES.items():
            yield Variant(name, photos, build, arm)
        return
    boxes = photos._replace(has_masks=False)
    if section in ARMS:
        two_stage = section == "light" or (section == "recipes" and photos.has_masks)
        build = partial(
            detectors.ours,
            name="maskrcnn" if two_stage else "retinanet",
            weights=None if section == "designs" else weights,
        )
        for name, arm in ARMS[section].items():
            yield Variant(name, photos if two_stage else boxes, build, arm)
        return
    options = dict(weights=weights) if section == "pretrained" else {}
    for name, build in (detectors.PEERS if section == "peers" else detectors.OURS).items():
        masks = photos.has_masks and name.endswith(("Mask R-CNN", "EoMT"))
        if photos.has_masks or "EoMT" not in name:
            name = name if masks else name.replace("Mask", "Faster")
            yield Variant(name, photos if masks else boxes, partial(build, **options), mild)


def compared(variant: Variant, root: Path, budget: Budget) -> dict[str, Any]:
    """Trains a variant with every seed, as long as a short trial says; tests on all splits."""
    config, photos = variant.config(), variant.photos
    slug = re.sub(r"\W+", "-", variant.name.lower())

    def run(suffix: str, iterations: int, seed: int, **options: Any) -> tuple[dict, Path]:
        one = Run(f"{slug}-{suffix}", config, schedule(iterations) | options, seed)
        return result_of(one, root, log), root / one.directory

    threads = f"-{budget.threads}threads" * (budget.threads > 1)
    _, trial = run(f"trial{threads}", TRIAL, 0)
    cost = json.loads((trial / "cost.json").read_text())
    seconds = cost["seconds" if budget.threads == 1 else "wall_seconds"]
    iterations = max(TRIAL, round(60 * budget.minutes / seconds))
    row: dict[str, Any] = dict(name=variant.name, iterations=iterations, **cost, val=[], test=[])
    for seed in range(budget.seeds):
        result, directory = run(f"{budget.minutes:g}min{threads}", iterations, seed)
        row["val"].append(result["metrics"])
        if photos.has_test:
            row["test"].append(tested(config, photos, directory, root, seed))
        if seed == 0:
            draw(photos, directory)
    return row


def tested(config: Config, photos: Photos, directory: Path, root: Path, seed: int) -> dict:
    config = config.copy()
    tested_on(config, photos, "test")
    options = dict(load_from=str(latest_checkpoint(directory)))
    name = f"{directory.name.removesuffix(f'-seed{seed}')}-test"
    return result_of(Run(name, config, options, seed, trains=False), root, log)["metrics"]


def draw(photos: Photos, directory: Path) -> None:
    """Writes overlays of the first validation photos into `<directory>/predicted`."""
    out = directory / "predicted"
    if not out.is_dir():
        files = sorted((photos.root / "val").iterdir())[:OVERLAYS]
        predict_files(Detector(str(latest_checkpoint(directory))), files, out)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds with half the distance of the extremes, in percent."""
    known = {
        (split, key)
        for row in rows
        for split in ("val", "test")
        for one in row[split]
        for key in one
    }
    columns = {title: (split, f"coco/{key}") for title, (split, key) in COLUMNS.items()}
    columns = {title: one for title, one in columns.items() if one in known}
    lines = [f"| | {' | '.join(columns)} | iterations | s/iteration | peak MB |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for row in rows:
        cells = [row["name"]]
        for split, key in columns.values():
            values = [100 * one[key] for one in row[split] if one.get(key) is not None]
            cells.append(ap_cell(values))
        cells += [f"{row[key]:.4g}" for key in ("iterations", "seconds", "peak_mb")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory of the datasets")
    parser.add_argument("--dataset", nargs="+", help="of them (default: all)")
    parser.add_argument("--weights", type=Path, help="birder's checkpoint, as benchmarks.recipes")
    parser.add_argument("--minutes", type=float, default=15, help="of training (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="of a run (default: 1)")
    parser.add_argument("--seeds", type=int, default=2, help="runs per row (default: 2)")
    parser.add_argument("--size", type=int, default=320, help="pixels (default: 320)")
    parser.add_argument("--root", type=Path, default=Path("work_dirs/photos"), help="directory")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("scratch", "peers", "pretrained", *ARMS, "large"),
        help="sections (default: the first two, with --weights the first four); large: a GPU",
    )
    parser.add_argument("--match", default="", help="only rows whose name contains this text")
    args = parser.parse_args(argv)
    if not args.dataset:
        found = args.data.glob("*/annotations/instances_train.json")
        args.dataset = sorted(path.parents[1].name for path in found)
        if not args.dataset:
            parser.error(f"{args.data} has no directory with annotations/instances_train.json")
    needing = ("pretrained", "recipes")
    if args.weights is None and {*needing, "light"} & {*(args.only or ())}:
        parser.error("pretrained, recipes and light need --weights")
    args.only = args.only or ["scratch", "peers", *(needing if args.weights else ())]
    return args


if __name__ == "__main__":
    main()
