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
from ropevit_mmdet.visualization.run_log import log_files
from ropevit_mmdet.weights.checkpoint import pretrained_entries
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
    """The text of a model card, from the `meta` of a published checkpoint and its file name."""
    config = literal_config(meta.get("cfg", ""), file)
    model, name = config.get("model") or {}, (repository or Path(file).stem).rpartition("/")[2]
    backbone = model.get("backbone") or {}
    backbone = backbone.get("backbone") or backbone  # of a FrozenBackbone
    base = _base_model(config, backbone)
    train, measured = (_annotation_files(config, split) for split in ("train", "val"))
    classes = (meta.get("dataset_meta") or {}).get("classes") or ()
    rows = {
        "detector": type_name(model),
        "backbone": f"{type_name(backbone)} {backbone.get('arch') or backbone.get('depth') or ''}",
        "base model": base,
        "training data": train,
        "classes": f"{len(classes)}: {', '.join(classes)}" if classes else "",
        "trained for": f"{meta.get('epoch', 0)} epochs, {meta.get('iter', 0)} iterations",
        "versions": ", ".join(f"{k[:-8]} {v}" for k, v in meta.items() if k.endswith("_version")),
        "license": license or "not given: the terms of the base model and the data apply",
    }
    table = [("", ""), ("---", "---"), *((k, v or "not recorded") for k, v in rows.items())]
    values = [("metric", "value"), ("---", "---"), *((k, f"{v:g}") for k, v in metrics.items())]
    evaluated = [one.get("metric", ()) for one in metric_settings(config.get("val_evaluator"))]
    masks = any("segm" in metric for metric in evaluated)
    task = "image-segmentation" if masks else "object-detection"
    results = [
        EvalResult(
            task, "custom", measured or "unknown", "mean_average_precision", value, metric_name=key
        )
        for key, value in metrics.items()
        if key.endswith("mAP")
    ]
    header = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=task,
        tags=["mmdetection", "rope-vit"],
        base_model=base if "/" in base else None,
        license=license,
        model_name=name,
        eval_results=results or None,
    )
    return _TEXT.format(
        header=header.to_yaml(),
        name=name,
        rows=_rows(table),
        metrics=f"On {measured}:\n\n{_rows(values)}" if metrics else "Not recorded.",
        source=f"hf://{repository}/{file}" if repository else file,
        config="" if config else ', config="CONFIG.py"',
    )


def logged_metrics(checkpoint: Path, meta: Mapping[str, Any]) -> dict[str, float]:
    """The AP values that a run logged for the weights of a checkpoint in its work directory."""
    epoch, step = meta.get("epoch", 0), meta.get("iter", 0)
    by_epoch = checkpoint.stem.endswith(f"epoch_{epoch}")
    metrics: dict[str, float] = {}
    for file in log_files(checkpoint.parent):
        last = 0  # iteration: validations may be counted in epochs
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            entry = json.loads(line)
            if "loss" in entry:
                last = entry["step"]
            elif entry.get("step") == (epoch if by_epoch else step) and (by_epoch or last <= step):
                metrics = {k: v for k, v in entry.items() if "AP" in k and not isinstance(v, str)}
    return metrics


def _base_model(config: Config, backbone: Mapping[str, Any]) -> str:
    """The repository on the hub that the run started from, or the name of the backbone's file."""
    entries = pretrained_entries(backbone.get("init_cfg"))
    source = next((one["checkpoint"] for one in entries if one.get("checkpoint")), "")
    known = (hub_repository(one) for one in (config.get("load_from") or "", source))
    return next(filter(None, known), source.rpartition("/")[2])


def _annotation_files(config: Config, split: str) -> str:
    dataset = (config.get(f"{split}_dataloader") or {}).get("dataset") or {}
    files = [one.get("ann_file") or "" for one in innermost_datasets(dataset)]
    return ", ".join(Path(file).name for file in files if file)


def _rows(rows: list[tuple[str, str]]) -> str:
    return "\n".join(
        "| {} | {} |".format(*(one.replace("|", r"\|") for one in row)) for row in rows
    )
