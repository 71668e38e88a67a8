"""The model card of a detector: README.md with the metadata that the Hugging Face Hub reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from mmengine.config import Config

from ropevit_mmdet.compat.checkpoint import literal_config
from ropevit_mmdet.compat.config import metric_settings, type_name
from ropevit_mmdet.datasets import innermost_datasets
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.hub import hub_repository

LIBRARY = "ropevit_mmdet"
_TEXT = """---
{header}
---

# {name}

{rows}

## Metrics

{metrics}

## Use

`pip install ropevit-mmdet[mm]`, then `ropevit predict {source} IMAGES`, or in Python:

```python
from ropevit_mmdet.apis import Detector

detector = Detector("{source}"{config})
sample = detector("photo.jpg", score_thr=0.5)  # MMDetection's DetDataSample
```
"""


def model_card(
    meta: Mapping[str, Any],
    file: str,
    metrics: Mapping[str, float],
    *,
    repository: str | None = None,
    license: str | None = None,
) -> str:
    """Writes the text of a model card.

    Args:
        meta: the `meta` of a published checkpoint.
        file: its name.
        metrics: value by name, as mmdet logs them.
        repository: `OWNER/NAME` on the hub; None: the card names the file.
        license: the hub's identifier, such as `apache-2.0`.
    """
    config = literal_config(meta.get("cfg", ""), file)
    model, name = config.get("model") or {}, (repository or Path(file).stem).rpartition("/")[2]
    backbone = model.get("backbone") or {}
    backbone = backbone.get("backbone") or backbone  # of a FrozenBackbone
    base = _base_model(config, backbone)
    masks = any("segm" in one.get("metric", ()) for one in metric_settings(_evaluator(config)))
    data = {split: _annotation_files(config, split) for split in ("train", "val", "test")}
    measured = data["val"] or data["test"]
    classes = (meta.get("dataset_meta") or {}).get("classes") or ()
    classes = (classes,) if isinstance(classes, str) else classes
    rows = {
        "detector": type_name(model),
        "backbone": f"{type_name(backbone)} {backbone.get('arch') or backbone.get('depth') or ''}",
        "base model": base,
        "training data": ", ".join(data["train"]),
        "classes": f"{len(classes)}: {', '.join(classes)}" if classes else "",
        "trained for": f"{meta.get('epoch', 0)} epochs, {meta.get('iter', 0)} iterations",
        "versions": ", ".join(f"{k[:-8]} {v}" for k, v in meta.items() if k.endswith("_version")),
        "license": license or "not given: the terms of the base model and the data apply",
    }
    table = [("", ""), ("---", "---"), *((k, v or "not recorded") for k, v in rows.items())]
    values = [("metric", "value"), ("---", "---"), *((k, f"{v:g}") for k, v in metrics.items())]
    of_metrics = f"On {', '.join(measured) or 'data that is not recorded'}:\n\n{_rows(values)}"
    source = f"hf://{repository}/{file}" if repository else file
    return _TEXT.format(
        header=_header(name, base, metrics, measured, license, masks).to_yaml(),
        name=name,
        rows=_rows(table),
        metrics=of_metrics if metrics else "Not recorded.",
        source=source,
        config="" if config else ', config="CONFIG.py"',
    )


def run_metrics(checkpoint: Path, meta: Mapping[str, Any]) -> dict[str, float]:
    """The AP values that a run logged for the weights of a checkpoint in its work directory."""
    epoch, step = meta.get("epoch", 0), meta.get("iter", 0)
    by_epoch = checkpoint.stem.endswith(f"epoch_{epoch}")
    metrics: dict[str, float] = {}
    for file in sorted(checkpoint.parent.glob("*/vis_data/scalars.json")):
        last = 0  # iteration: validations may be counted in epochs
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            entry = json.loads(line)
            if "loss" in entry:
                last = entry["step"]
            elif entry.get("step") == (epoch if by_epoch else step) and (by_epoch or last <= step):
                metrics = _numbers(entry)
    return metrics


def read_metrics(path: str | Path) -> dict[str, float]:
    """The AP values in the JSON file that a test writes into its work directory."""
    try:
        metrics = _numbers(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the JSON file of a test's metrics: {error}") from error
    if not metrics:
        raise UserError(f"{path} has no metric with 'AP' in its name; `ropevit test` writes them")
    return metrics


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {key: one for key, one in entry.items() if "AP" in key and type(one) in (int, float)}


def _header(
    name: str,
    base: str,
    metrics: Mapping[str, float],
    measured: list[str],
    license: str | None,
    masks: bool,
) -> ModelCardData:
    is_coco = any("2017" in one and "instances" in one for one in measured)
    task = "image-segmentation" if masks else "object-detection"
    results = [
        EvalResult(
            task_type=task,
            dataset_type="coco" if is_coco else "custom",
            dataset_name=", ".join(measured) or "not recorded",
            metric_type="mean_average_precision",
            metric_name=key,
            metric_value=value,
        )
        for key, value in metrics.items()
        if key.endswith("mAP")
    ]
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=task,
        tags=["mmdetection", "rope-vit"],
        base_model=base if "/" in base else None,
        datasets=["coco"] if is_coco else None,
        license=license,
        model_name=name,
        eval_results=results or None,
    )


def _base_model(config: Config, backbone: Mapping[str, Any]) -> str:
    """The repository on the hub that the run started from, or the name of the backbone's file."""
    settings = backbone.get("init_cfg") or {}
    settings = settings[0] if isinstance(settings, (list, tuple)) else settings
    source = settings.get("checkpoint") or ""
    known = (hub_repository(one) for one in (config.get("load_from") or "", source))
    return next(filter(None, known), source.rpartition("/")[2])


def _evaluator(config: Config) -> Any:
    return config.get("val_evaluator") or config.get("test_evaluator") or {}


def _annotation_files(config: Config, split: str) -> list[str]:
    """The names of the annotation files of a split."""
    dataset = (config.get(f"{split}_dataloader") or {}).get("dataset") or {}
    files = [one.get("ann_file") or "" for one in innermost_datasets(dataset)]
    return [Path(file).name for file in files if file]


def _rows(rows: list[tuple[str, str]]) -> str:
    return "\n".join(
        "| {} | {} |".format(*(one.replace("|", r"\|") for one in row)) for row in rows
    )
