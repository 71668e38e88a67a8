"""Publication of a checkpoint: weights and metadata as plain data, without paths and secrets."""

import hashlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor

from ropevit_mmdet._output import atomic_file, output_directory
from ropevit_mmdet.compat.checkpoint import literal_config
from ropevit_mmdet.datasets import innermost_datasets
from ropevit_mmdet.deploy.model_card import LIBRARY, model_card, read_metrics, run_metrics
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.checkpoint import check_finite
from ropevit_mmdet.weights.detector_checkpoint import check_classes, read_detector_checkpoint
from ropevit_mmdet.weights.hub import hub_reason

CARD = "README.md"
KEPT_META = (  # describe the weights; the other keys describe the run
    *("dataset_meta", "CLASSES", "PALETTE", "cfg", "epoch", "iter"),
    *("mmdet_version", "mmengine_version", "mmcv_version"),
)
# A detector has weights with other prefixes too; a classifier or a pretrained encoder has not.
NO_DETECTOR = ("backbone.", "neck.", "head.", "data_preprocessor.")
SECRET = "<secret>"
SECRETS = "keys, tokens and passwords"  # replaces their old values in the list of changes
_SECRET_NAME = re.compile(
    r".*((api|access|secret|private)[_-]?keys?(_id)?|secrets?|tokens?|passwords?|passwd|pwd|"
    r"passphrase|credentials?|authorization)",
    re.IGNORECASE,
)
_ABSOLUTE = re.compile(r"file:/|~\w*/|/(?=.)|[A-Za-z]:[\\/]|\\\\")
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/?\s]*@)?([^?\s]*)(?:\?\S*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """A published file."""

    path: Path
    weights: str  # 'EMA', 'raw', or 'only' for a run without EMA
    removed: tuple[str, ...]  # keys of the checkpoint
    redacted: dict[str, str]  # old text -> new text in its metadata
    size_before: int  # bytes
    size: int


def publish_model(
    source: str | Path,
    target: str | Path | None = None,
    *,
    raw: bool = False,
    hub: str | None = None,
    license: str | None = None,
    metrics: str | Path | None = None,
) -> Published:
    """Writes a directory with a checkpoint for others to use and its model card; or uploads it.

    Args:
        source: path of a checkpoint.
        target: the directory; None: it is only uploaded.
        raw: as for `publish_checkpoint`.
        hub: `OWNER/NAME`, a repository of the Hugging Face Hub that is created if it is not there.
        license: the hub's identifier, such as `apache-2.0`.
        metrics: a JSON file of metrics; by default those that the run logged for the checkpoint.

    Raises:
        UserError: as for `publish_checkpoint`; no token of the hub, or an upload that failed.
            Nothing is written then.
    """
    if hub:
        _check_upload(hub)
    source, card = Path(source).expanduser(), Path(target or "", CARD)
    if target and card.exists() and LIBRARY not in card.read_text(encoding="utf-8"):
        raise UserError(f"{card} is not a model card: name another directory")
    measured = read_metrics(metrics) if metrics else None
    with _directory(target) as directory:
        done = publish_checkpoint(source, directory, raw=raw)
        meta = torch.load(done.path, weights_only=True)["meta"]
        if measured is None:
            measured = {} if done.weights == "raw" else run_metrics(source, meta)
        text = model_card(meta, done.path.name, measured, repository=hub, license=license)
        (directory / CARD).write_text(text, encoding="utf-8")
        if hub:
            _upload(directory, hub)
    return replace(done, path=Path(target or "", done.path.name))


def publish_checkpoint(source: str | Path, target: str | Path, *, raw: bool = False) -> Published:
    """Writes the checkpoint of a detector for others to use.

    Args:
        source: path of a checkpoint.
        target: a name that ends in .pth, which the hash is added to, or a directory.
        raw: of a run with EMA, the weights of the last step instead of their average.

    Raises:
        UserError: a file without a detector, or `raw` for a run without EMA; see also
            `read_detector_checkpoint` and `check_classes`.
    """
    source, target = Path(source).expanduser(), Path(target)
    checkpoint = read_detector_checkpoint(str(source))
    weights, choice = _choose_weights(checkpoint, raw)
    if all(name.startswith(NO_DETECTOR) for name in weights):
        prefixes = sorted({name.partition(".")[0] for name in weights})
        raise UserError(f"checkpoint {source} contains no detector, only {', '.join(prefixes)}")
    if raw and choice != "raw":
        raise UserError(f"checkpoint {source} contains no EMA: leave out --raw")
    redacted: dict[str, str] = {}
    meta = _public_meta(checkpoint.get("meta") or {}, str(source), redacted)
    buffer = io.BytesIO()
    weights = {name: value.clone() for name, value in weights.items()}  # not views of a storage
    torch.save({"meta": meta, "state_dict": weights}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:8]  # as in mmdet's publish_model
    stem = target.with_suffix("") if target.suffix == ".pth" else target / source.stem
    path = stem.with_name(f"{stem.name}-{digest}.pth")
    with atomic_file(path) as file:
        file.write(content)
    removed = tuple(key for key in checkpoint if key not in ("meta", "state_dict"))
    return Published(path, choice, removed, redacted, source.stat().st_size, len(content))


@contextmanager
def _directory(target: str | Path | None) -> Iterator[Path]:
    """A directory whose files move to `target`, if there is one, at the end."""
    if target:
        with output_directory(target) as directory:
            yield directory
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def _check_upload(repository: str) -> None:
    """Checks what an upload needs before anything is written."""
    from huggingface_hub import get_token

    problem = (
        "" if get_token() else "there is no token: log in with `hf auth login` or set HF_TOKEN"
    )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        problem = "expected OWNER/NAME"
    if problem:
        raise UserError(f"--hub {repository}: {problem}")


def _upload(directory: Path, repository: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload the detector"
        )
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(f"upload to {repository} failed: {hub_reason(error)}") from error


def _choose_weights(checkpoint: Mapping[str, Any], raw: bool) -> tuple[dict[str, Tensor], str]:
    """EMAHook saves the averaged weights as `state_dict`, the raw ones as `ema_state_dict`."""
    weights, swapped = checkpoint["state_dict"], checkpoint.get("ema_state_dict")
    if not swapped or not raw:
        return weights, "EMA" if swapped else "only"
    raw_weights = {
        key.removeprefix("module."): value
        for key, value in swapped.items()
        if key.startswith("module.")
    }
    if not raw_weights or raw_weights.keys() - weights.keys():
        raise UserError("its ema_state_dict is not that of mmengine's EMAHook: leave out --raw")
    check_finite(raw_weights, "ema_state_dict")
    return {**weights, **raw_weights}, "raw"


def _public_meta(meta: Mapping[str, Any], source: str, changes: dict[str, str]) -> dict[str, Any]:
    """The kept fields as plain data; a config that is more than literals is removed."""
    kept = {key: _plain(meta[key], changes) for key in KEPT_META if key in meta and key != "cfg"}
    logger = MMLogger.get_current_instance()
    try:
        config = literal_config(meta.get("cfg", ""), source)
    except UserError as error:
        logger.warning(f"removed the config: {error}")
        return kept
    saved = (meta.get("dataset_meta") or {}).get("classes", ())
    for dataset in innermost_datasets(config.get("train_dataloader", {}).get("dataset", {})):
        named = (dataset.get("metainfo") or {}).get("classes", ())
        if warning := check_classes(saved, named, source):
            logger.warning(warning)
    if config:
        kept["cfg"] = Config(_plain(config.to_dict(), changes)).pretty_text
    return kept


def _plain(value: Any, changes: dict[str, str], secret: bool = False) -> Any:
    """Values as Python's own types, without absolute paths and secrets."""
    if isinstance(value, Mapping):
        return {
            _plain(key, changes): _plain(
                item, changes, secret or bool(_SECRET_NAME.fullmatch(str(key)))
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, changes, secret) for item in value)
    if not isinstance(value, str):
        return value.tolist() if hasattr(value, "tolist") else value
    new = SECRET if secret else _public_text(value)
    if new != value:
        changes[SECRETS if secret else value] = new
    return new


def _public_text(text: str) -> str:
    """The last part of an absolute path, with its last slash; a URL without user and query."""
    if not _ABSOLUTE.match(text):
        return _URL.sub(r"\1\2", text)
    parts = [part for part in re.split(r"[\\/]+", text) if part]
    return parts[-1] + "/" * text.endswith(("/", "\\")) if parts else ""
