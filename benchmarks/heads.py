"""Compare heads at equal time on the synthetic shapes: docs/recipes.md has the results.

    python -m benchmarks.heads configs/shapes_maskrcnn.py configs/shapes_dino.py --minutes 20

Every head gets the RoPE ViT of `configs/shapes_transfer.py`, pretrained as by `benchmarks.recipes`,
and `--minutes` of CPU time of its process on one thread. Started again, the command resumes.
"""

import argparse
import json
import os
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook

from benchmarks.recipes import Recipes, ap_cell
from ropevit_mmdet.apis.compare.experiment import mean_and_spread
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import one_line_errors

TRIAL = 60  # iterations that measure the time of one


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="configs on the shapes dataset")
    parser.add_argument("--root", type=Path, default=Path("work_dirs/recipes"), help="directory")
    parser.add_argument("--weights", type=Path, help="birder's checkpoint (default: pretrain one)")
    parser.add_argument("--minutes", type=float, default=20, help="of training (default: 20)")
    parser.add_argument("--seeds", type=int, default=2, help="runs per head (default: 2)")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    with one_line_errors():
        recipes = Recipes(args.root.resolve(), args.seeds, jobs=1)
        recipes.start_from(args.weights)
        rows = [row for path in args.configs for row in compared(path, recipes, args.minutes)]
    (recipes.root / "heads.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def compared(path: str, recipes: Recipes, minutes: float) -> list[dict]:
    """Runs a config with every seed; the schedule follows from the time of a short trial."""
    config, head = transferred(path, recipes), Path(path).stem

    def run(name: str, iterations: int, seed: int) -> dict:
        result = recipes.run(None, f"{head} {name}", config, schedule(iterations), seed).result()
        cost = recipes.root / "runs" / f"{head}-{name}-seed{seed}" / "cost.json"
        return dict(head=head, seed=seed, **json.loads(cost.read_text()), **result)

    iterations = round(60 * minutes / run("trial", TRIAL, 0)["seconds"])
    return [run(f"{minutes:g}min", max(TRIAL, iterations), seed) for seed in recipes.seeds]


def transferred(path: str, recipes: Recipes) -> Config:
    """A config with the pretrained backbone and its layer decay, in one process."""
    config = load_config(path)
    use_backbone(config, recipes.config, recipes.checkpoint)
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    use_cost_hook(config)
    return config


def use_backbone(config: Config, base: Config, checkpoint: Path) -> None:
    """Gives a config the backbone and the layer decay of another one, with a checkpoint."""
    model, arch = config.model, base.model.backbone.arch
    weights = dict(type="Pretrained", checkpoint=str(checkpoint))
    model.backbone = {**base.model.backbone, "init_cfg": weights}
    model.data_preprocessor.update({k: base.model.data_preprocessor[k] for k in ("mean", "std")})
    if neck := model.get("neck"):
        scales = [factor * arch.patch_size / neck.in_stride for factor in neck.scale_factors]
        neck.update(in_channels=arch.hidden_dim, in_stride=arch.patch_size, scale_factors=scales)
    else:  # EoMT
        model.panoptic_head.update(in_channels=arch.hidden_dim, patch_size=arch.patch_size)
    for key in ("constructor", "paramwise_cfg"):
        config.optim_wrapper[key] = base.optim_wrapper[key]


def use_cost_hook(config: Config) -> None:
    config.custom_imports.imports.append("benchmarks.heads")
    config.custom_hooks = [*config.get("custom_hooks", ()), dict(type="CostHook")]


def schedule(iterations: int) -> dict:
    """Config options: the learning rate's decay ends with the run."""
    warm_up = ("param_scheduler.0.end", "param_scheduler.1.begin")
    ends = ("train_cfg.max_iters", "train_cfg.val_interval", "param_scheduler.1.end")
    return dict.fromkeys(warm_up, min(100, iterations // 4)) | dict.fromkeys(ends, iterations)


def table(rows: list[dict]) -> str:
    lines = ["| head | box AP | mask AP | iterations | s/iteration | peak MB |", "|---" * 6 + "|"]
    for head in dict.fromkeys(row["head"] for row in rows):
        runs, cells = [row for row in rows if row["head"] == head], [head]
        for metric in ("coco/bbox_mAP", "coco/segm_mAP"):
            values = [100 * row["metrics"][metric] for row in runs if metric in row["metrics"]]
            cells.append(ap_cell(values))
        for key in ("iterations", "seconds", "peak_mb"):
            cells.append(f"{mean_and_spread([row[key] for row in runs])[0]:.4g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@HOOKS.register_module()
class CostHook(Hook):
    """With every checkpoint, writes CPU and wall seconds per iteration and peak memory."""

    def before_train(self, runner) -> None:
        self.first, self.start = runner.iter, (time.process_time(), time.monotonic())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        count = runner.iter + 1 - self.first
        cpu, wall = time.process_time() - self.start[0], time.monotonic() - self.start[1]
        peak_mb = getrusage(RUSAGE_SELF).ru_maxrss / 1024
        cost = dict(seconds=cpu / count, wall_seconds=wall / count, peak_mb=peak_mb)
        Path(runner.work_dir, "cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main()
