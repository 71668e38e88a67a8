"""The part of a report about one run: what its work directory, or a result file, has."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from ropevit_mmdet._images import read_image, read_images
from ropevit_mmdet.apis.browse import spread_indices
from ropevit_mmdet.apis.features import image_features, load_features
from ropevit_mmdet.apis.ground_truth import image_paths, load_results
from ropevit_mmdet.apis.report.errors import Mistake, find_mistakes, thumbnail, worst
from ropevit_mmdet.apis.report.figures import Figure, Table, curves, encode, render
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks import latest_checkpoint
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.confusion_matrix import confusion_matrix, pair_objects
from ropevit_mmdet.evaluation.precision_recall import (
    FIGURES,
    IOUS,
    PrecisionRecall,
    precision_recall,
)
from ropevit_mmdet.visualization import (
    plot_confusion_matrix,
    plot_features,
    plot_precision_recall,
    read_run,
)
from ropevit_mmdet.visualization.run_log import log_files

MAX_ERRORS = 60  # thumbnails: half of them false positives, half missed objects
TP_IOU_THR = 0.5
RESULTS = "results.json"  # in a work directory
_NUM_FEATURES = 2  # images
_VERSIONS = r"(?m)^    (Python|GPU [\d,]+|PyTorch|TorchVision|OpenCV|MMEngine): (.+)$"


@dataclass
class RunPart:
    """The content of a part; `missing` says what it lacks and how to get it."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    curves: list[Figure] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    features: list[Figure] = field(default_factory=list)
    mistakes: list[tuple[Mistake, str, Figure]] = field(default_factory=list)  # with file names
    config: str = ""
    classes: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def optional(self, what: str, required: object) -> Iterator[None]:
        """Lists what cannot be read as missing, unless it is required."""
        try:
            yield
        except (UserError, ImportError) as error:  # of a package that a dataset needs
            if required:
                raise
            self.missing.setdefault(what, str(error))


def describe_run(
    source: Path,
    config_file: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    cfg_options: Sequence[str] = (),
    score_thr: float = 0.3,
    max_errors: int = MAX_ERRORS,
    with_curves: bool = True,
) -> RunPart:
    """Collects everything about a run by its work directory, or about a result file."""
    part = RunPart(source.resolve().name)
    results = source / RESULTS if source.is_dir() else source
    named = checkpoint or source == results
    if source.is_dir():
        _add_log(part, source, with_curves)
        config_file = config_file or find_config(source)
        checkpoint = checkpoint or latest_checkpoint(source)
    if not config_file:
        part.missing["config, results and features"] = "add --config CONFIG"
        return part
    config = load_config(config_file, cfg_options)
    part.config = config.pretty_text
    part.facts = {"config": str(config_file), "checkpoint": str(checkpoint or "none"), **part.facts}
    if checkpoint:
        with part.optional("features", required=named):
            part.features = _features(str(checkpoint), config)
    else:
        part.missing["features"] = "add --checkpoint CHECKPOINT"
    if results.is_file():
        with part.optional("results", required=source == results):
            _add_results(part, results, config, score_thr, max_errors)
    else:
        command = ["ropevit", "test", config_file, checkpoint or "CHECKPOINT", "--out", results]
        what = "AP of classes and sizes, confusion matrix, errors"
        part.missing[what] = shlex.join(map(str, command))
    return part


def is_run(directory: Path) -> bool:
    """Whether a directory has a log, results or a checkpoint of a run."""
    has_file = log_files(directory) or (directory / RESULTS).is_file()
    return directory.is_dir() and bool(has_file or latest_checkpoint(directory))


def find_config(directory: Path) -> Path | None:
    """The config that mmengine saved for the newest training in a work directory, or another."""
    logs = [path.with_name("config.py") for path in reversed(log_files(directory))]
    others = [*directory.glob("*/vis_data/config.py"), *directory.glob("*.py")]
    newest = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in (*logs, *newest) if path.is_file()), None)


def _add_log(part: RunPart, directory: Path, with_curves: bool) -> None:
    """Adds the versions of the newest start, curves, and the figures of the last validation."""
    for file in sorted(directory.glob("*/*.log"))[-1:]:
        header = file.read_text(encoding="utf-8", errors="replace")[:50_000]
        part.facts |= dict(re.findall(_VERSIONS, header))
    with part.optional("curves", required=False):
        run = read_run(directory, part.name)
        for entry in run.train[-1:]:
            part.facts["training"] = f"{entry['step']} iterations, {run.seconds:,.0f} s"
        for entry in run.val[-1:]:
            title = f"Validation at iteration {entry['step']}, log"
            rows = [row for row in entry.items() if row[0] not in ("step", "time", "data_time")]
            part.tables = [Table(title, ["metric", ""], rows)] if rows else []
        part.curves = curves([run]) if with_curves else []


def _add_results(
    part: RunPart, file: Path, config: Config, score_thr: float, max_errors: int
) -> None:
    """Adds AP, curves, the confusion matrix and thumbnails of errors."""
    detections, annotations = load_results(file, config)
    names = part.classes = annotations.names
    thresholds = dict(score_thr=score_thr, tp_iou_thr=TP_IOU_THR)
    pairs = [*pair_objects(detections, annotations, **thresholds)]
    matrix = confusion_matrix(pairs, len(names))
    boxes = precision_recall(detections, annotations)
    of_shapes = {"box": boxes}
    found = [one for one in detections.values() if len(one.boxes)]
    if annotations.have_masks() and found and all(one.masks for one in found):
        of_shapes["mask"] = precision_recall(detections, annotations, "segm")
    else:
        part.missing["mask AP"] = "the results or the annotations have no masks"
    part.tables = [_ap_table(of_shapes, matrix, annotations)]
    title = f"scores from {score_thr}, IoU from {TP_IOU_THR}"
    part.figures.append(render(plot_confusion_matrix(matrix, names, title), "Confusion matrix"))
    for index, iou in enumerate(IOUS):
        figure = plot_precision_recall(names, boxes.recall, boxes.precision[[index]], [iou])
        part.figures.append(render(figure, f"Precision over recall of boxes, IoU {iou}"))
    mistakes = find_mistakes(pairs, detections, **thresholds)
    missed = worst((one for one in mistakes if one.type == "missed"), max_errors // 2)
    false = worst((one for one in mistakes if one.type != "missed"), max_errors // 2)
    paths: dict[str, Path] = {}
    with part.optional("thumbnails", required=False):
        paths = image_paths(config)
    for one in (*false, *missed):
        name = annotations.coco.imgs[one.pairs.image_id]["file_name"]
        with part.optional("some thumbnails", required=False):
            pixels = thumbnail(read_image(paths.get(name, name)), one, annotations)
            part.mistakes.append((one, name, encode(Image.fromarray(pixels), quality=80)))


def _ap_table(
    of_shapes: Mapping[str, PrecisionRecall], matrix: np.ndarray, annotations: Annotations
) -> Table:
    """AP of all classes and of each, for boxes and masks."""
    header = ["class", "objects", *(f"{shape} {one}" for shape in of_shapes for one in FIGURES)]
    counts = matrix[:-1].sum(axis=1)
    rows = [["all", counts.sum(), *sum((one.means() for one in of_shapes.values()), [])]]
    values = np.concatenate([one.figures for one in of_shapes.values()], axis=1)
    rows += [[*row, *of_class] for *row, of_class in zip(annotations.names, counts, values)]
    title = f"Test, {len(annotations.image_ids)} images"
    return Table(title, header, rows, [None, *range(len(rows) - 1)])


def _features(checkpoint: str, config: Config) -> list[Figure]:
    paths = [path for path in image_paths(config).values() if path.is_file()]
    chosen = [paths[index] for index in spread_indices(len(paths), _NUM_FEATURES)]
    source = load_features(checkpoint, config)
    images = image_features(source, read_images(chosen))
    if not images:
        return []
    figure = plot_features(images, num_registers=source.backbone.arch.num_reg_tokens)
    return [render(figure, "Features of the last block")]
