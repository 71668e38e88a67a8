"""The part of a report about one run: what its work directory, or a result file, has."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from ropevit_mmdet import visualization
from ropevit_mmdet._images import read_image, read_images
from ropevit_mmdet.apis.browse import spread_indices
from ropevit_mmdet.apis.compare.experiment import RESULT_FILE
from ropevit_mmdet.apis.compare.report import TITLES
from ropevit_mmdet.apis.features import image_features, load_features
from ropevit_mmdet.apis.ground_truth import image_paths, load_results
from ropevit_mmdet.apis.report import errors
from ropevit_mmdet.apis.report.figures import Figure, Table, curves, encode, figure
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.engine.hooks import latest_checkpoint
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.evaluation.annotations import Annotations
from ropevit_mmdet.evaluation.confusion_matrix import collapse, count_pairs, pair_objects
from ropevit_mmdet.evaluation.precision_recall import FIGURES, IOUS, precision_recall
from ropevit_mmdet.visualization.run_log import log_files

_VERSIONS = r"(?m)^    (Python|GPU [\d,]+|PyTorch|TorchVision|OpenCV|MMEngine): (.+)$"


@dataclass(frozen=True)
class Settings:
    """What a report contains; `config`, `results` and `checkpoint` are by default of the run."""

    config: str | None = None
    results: str | None = None
    checkpoint: str | None = None
    score_thr: float = 0.3  # of errors and the confusion matrix
    tp_iou_thr: float = 0.5
    num_errors: int = 60
    num_features: int = 2  # images
    cfg_options: Sequence[str] = ()


@dataclass
class RunPart:
    """The content of a part; `missing` says what it lacks and how to get it."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    curves: list[Figure] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    mistakes: list[tuple[errors.Mistake, str, Figure]] = field(default_factory=list)
    config: str = ""
    classes: tuple[str, ...] = ()
    missing: list[str] = field(default_factory=list)


def describe_run(
    directory: Path | None, settings: Settings, *, name: str, with_curves: bool = True
) -> RunPart:
    """Collects everything about a run, or without `directory` about results."""
    part = RunPart(name)
    file = settings.config or (directory and find_config(directory))
    config = load_config(file, settings.cfg_options) if file else None
    if config is not None:
        part.config = config.pretty_text
        part.facts = _facts(config)
    if directory:
        _add_log(part, directory, with_curves)
    if config is None:
        part.missing.append("config, results and features: add --config CONFIG")
        return part
    results = Path(settings.results or (directory or Path()) / "results.json")
    if settings.results or results.is_file():
        with _optional(part, "results", required=settings.results):
            _add_results(part, results, config, settings)
    else:
        command = f"ropevit test {config.filename} CHECKPOINT --out {results}"
        part.missing.append(f"AP of classes and sizes, confusion matrix, errors: {command}")
    checkpoint = settings.checkpoint or (directory and latest_checkpoint(directory))
    if checkpoint:
        part.facts["checkpoint"] = str(checkpoint)
        with _optional(part, "features", required=settings.checkpoint):
            _add_features(part, str(checkpoint), config, settings.num_features)
    else:
        part.missing.append("features: add --checkpoint CHECKPOINT")
    return part


def find_config(directory: Path) -> Path | None:
    """The config that mmengine saved for the newest training in a work directory, or another."""
    logs = [path.with_name("config.py") for path in reversed(log_files(directory))]
    others = [*directory.glob("*/vis_data/config.py"), *directory.glob("*.py")]
    newest = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in (*logs, *newest) if path.is_file()), None)


@contextmanager
def _optional(part: RunPart, what: str, required: object) -> Iterator[None]:
    """Lists what cannot be read as missing, unless the user named it."""
    try:
        yield
    except UserError as error:
        if required:
            raise
        part.missing.append(f"{what}: {error}")


def _facts(config: Config) -> dict[str, str]:
    backbone = config.model.get("backbone") or {}
    backbone = backbone.get("backbone", backbone)  # of a FrozenBackbone
    data = (config.get("test_dataloader") or {}).get("dataset") or {}
    facts = {
        "config file": str(config.filename),
        "detector": type_name(config.model),
        "backbone": f"{type_name(backbone)} {backbone.get('arch', '')}",
        "test data": f"{data.get('data_root') or ''} {data.get('ann_file') or ''}",
    }
    return {key: value for key, value in facts.items() if value.strip()}


def _add_log(part: RunPart, directory: Path, with_curves: bool) -> None:
    """Adds the versions of the newest start, curves, and the last figures in the log."""
    for file in sorted(directory.glob("*/*.log"))[-1:]:
        header = file.read_text(encoding="utf-8", errors="replace")[:50_000]
        part.facts |= dict(re.findall(_VERSIONS, header))
    metrics = _test_metrics(directory)
    if metrics:
        part.tables.append(_logged("Test, from its log", metrics))
    files = log_files(directory)
    if not files:
        part.missing.append(f"curves: `ropevit train` writes a log, and {directory} has none")
        return
    run = visualization.read_run(directory, part.name)
    for entry in run.train[-1:]:
        seconds = visualization.elapsed_seconds(run)[-1]
        part.facts["training"] = f"{entry['step']} iterations, {seconds:,.0f} s, {len(files)} starts"
    part.curves = curves([run]) if with_curves else []
    for entry in run.val[-1:]:
        part.tables.append(_logged(f"Validation at iteration {entry['step']}, from the log", entry))


def _test_metrics(directory: Path) -> dict[str, Any]:
    """The figures of the last test that was run in a work directory, or of a comparison's run."""
    tests = sorted(one for one in directory.glob("*/*.json") if one.stem == one.parent.name)
    for file in (directory / RESULT_FILE, *reversed(tests)):
        with suppress(OSError, ValueError, AttributeError):  # none, or truncated
            content = json.loads(file.read_text(encoding="utf-8"))
            return dict(content.get("metrics", content))
    return {}


def _logged(title: str, metrics: Mapping[str, Any]) -> Table:
    """A table of CocoMetric's figures in a log."""
    figures = {key.rpartition("/")[2]: value for key, value in metrics.items()}
    titles = [TITLES[key] for key in TITLES if key in figures]
    rows = [["all", *(figures[key] for key in TITLES if key in figures)]]
    last = titles[-1].split()[0] if titles else ""  # mmdet logs classes of the last metric only
    for key, value in figures.items():
        if key.endswith("_precision"):
            cells = [value if one == f"{last} AP" else "" for one in titles]
            rows.append([key.removesuffix("_precision"), *cells])
    return Table(title, ["class", *titles], rows)


def _add_results(part: RunPart, file: Path, config: Config, settings: Settings) -> None:
    """Adds AP, curves, the confusion matrix and thumbnails of errors."""
    results, annotations = load_results(file, config)
    names = part.classes = annotations.names
    thresholds = dict(score_thr=settings.score_thr, tp_iou_thr=settings.tp_iou_thr)
    pairs = list(pair_objects(results, annotations, **thresholds))
    matrix = count_pairs(pairs, len(names))
    boxes = precision_recall(results, annotations)
    figures = {"box": boxes.figures}
    found = [one for one in results if len(one.boxes)]
    if annotations.have_masks() and found and all(one.masks for one in found):
        figures["mask"] = precision_recall(results, annotations, "segm").figures
    else:
        part.missing.append("mask AP: the results or the annotations have no masks")
    part.tables = [_ap_table(figures, matrix, annotations)]
    title = f"scores from {settings.score_thr}, IoU from {settings.tp_iou_thr}"
    plot = visualization.plot_confusion_matrix
    part.figures.append(figure("", plot, *collapse(matrix, names), title=title))
    for index, iou in enumerate(IOUS):
        curve = names, boxes.recall, boxes.precision[[index]], [iou]
        part.figures.append(figure("", visualization.plot_precision_recall, *curve))
    detections = annotations.match(results)
    mistakes = errors.find_mistakes(pairs, detections, settings.tp_iou_thr)
    half = settings.num_errors // 2
    missed = errors.worst((one for one in mistakes if one.kind == "missed"), half)
    false = errors.worst((one for one in mistakes if one.kind != "missed"), half)
    _add_thumbnails(part, [*false, *missed], annotations, image_paths(config))


def _ap_table(
    figures: Mapping[str, np.ndarray], matrix: np.ndarray, annotations: Annotations
) -> Table:
    """AP of all classes and of each, for boxes and masks."""
    header = ["class", "objects", *(f"{kind} {one}" for kind in figures for one in FIGURES)]
    values, counts = np.concatenate([*figures.values()], axis=1), matrix[:-1].sum(axis=1)
    known = (column[~np.isnan(column)] for column in values.T)
    means = [column.mean() if column.size else np.nan for column in known]
    rows = [[name, count, *of_class]
            for name, count, of_class in zip(annotations.names, counts, values)]  # fmt: skip
    title = f"Test, {len(annotations.image_ids)} images"
    labels = [None, *range(len(rows))]
    return Table(title, header, [["all", counts.sum(), *means], *rows], labels)


def _add_thumbnails(
    part: RunPart,
    mistakes: Iterable[errors.Mistake],
    annotations: Annotations,
    paths: Mapping[str, Path],
) -> None:
    lost = 0
    for one in mistakes:
        file = annotations.coco.imgs[one.pairs.image_id]["file_name"]
        try:
            pixels = errors.thumbnail(read_image(paths[file]), one, annotations)
            part.mistakes.append((one, file, encode(Image.fromarray(pixels), quality=80)))
        except (KeyError, UserError):
            lost += 1
    if lost:
        part.missing.append(f"thumbnails of {lost} errors: their images cannot be read")


def _add_features(part: RunPart, checkpoint: str, config: Config, number: int) -> None:
    """Adds the features of some test images."""
    paths = [*image_paths(config).values()]
    chosen = [paths[index] for index in spread_indices(len(paths), number)]
    if chosen:
        source = load_features(checkpoint, config)
        images = image_features(source, read_images(chosen))
        settings = {"num_registers": source.backbone.arch.num_reg_tokens}
        part.figures.append(figure("", visualization.plot_features, images, **settings))
