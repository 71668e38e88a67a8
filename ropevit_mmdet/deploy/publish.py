"""Publication of a checkpoint: weights and metadata as plain data, without paths and secrets."""

import hashlib
import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from ropevit_mmdet._output import atomic_file, output_directory
from ropevit_mmdet.compat.checkpoint import literal_config
from ropevit_mmdet.deploy.model_card import LIBRARY, logged_metrics, model_card
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.weights.hub import hub_reason

CARD = "README.md"
KEPT_META = (  # describe the weights; the other keys describe the run
    *("dataset_meta", "CLASSES", "PALETTE", "epoch", "iter"),
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
_ABSOLUTE = re.compile(r"file:/|[\w+]+:///|~\w*/|/(?=.)|[A-Za-z]:[\\/]|\\\\")
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/?\s]*@)?([^?\s]*)(?:\?\S*)?", re.IGNORECASE)


class Published(NamedTuple):
    """A published file."""

    path: Path
    removed: tuple[str, ...]  # keys of the checkpoint
    redacted: dict[str, str]  # old text -> new text in its metadata


def publish_model(
    source: str | Path,
    target: str | Path | None = None,
    *,
    hub: str | None = None,
    license: str | None = None,
) -> Published:
    """Writes a directory with a checkpoint for others to use and its model card; or uploads it.

    Args:
        source: path of a checkpoint.
        target: the directory; None: it is only uploaded.
        hub: `OWNER/NAME`, a repository of the Hugging Face Hub that is created if it is not there.
        license: the hub's identifier, such as `apache-2.0`.

    Raises:
        UserError: as for `publish_checkpoint`; no token of the hub, or an upload that failed.
            Nothing is written then.
    """
    if hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise UserError(f"--hub {hub}: expected OWNER/NAME")
    if hub and not huggingface_hub.get_token():
        raise UserError(f"--hub {hub}: no token: log in with `hf auth login` or set HF_TOKEN")
    source, card = Path(source).expanduser(), Path(target or "", CARD)
    if target and card.exists() and LIBRARY not in card.read_text(encoding="utf-8"):
        raise UserError(f"{card} is not a model card: name another directory")
    with tempfile.TemporaryDirectory() as unused, output_directory(target or unused) as directory:
        done = publish_checkpoint(source, directory)
        meta = torch.load(done.path, weights_only=True)["meta"]
        metrics = logged_metrics(source, meta)
        text = model_card(meta, done.path.name, metrics, repository=hub, license=license)
        (directory / CARD).write_text(text, encoding="utf-8")
        if hub:
            _upload(directory, hub)
    return done._replace(path=Path(target or "", done.path.name))


def publish_checkpoint(source: str | Path, target: str | Path) -> Published:
    """Writes a detector's checkpoint for others to use; of a run with EMA, the averaged weights.

    `target` is a name that ends in .pth, which the hash is added to, or a directory.

    Raises:
        UserError: a file without a detector; see also `read_detector_checkpoint`.
    """
    source, target = Path(source).expanduser(), Path(target)
    checkpoint = read_detector_checkpoint(str(source))
    weights = checkpoint["state_dict"]
    if all(name.startswith(NO_DETECTOR) for name in weights):
        prefixes = sorted({name.partition(".")[0] for name in weights})
        raise UserError(f"checkpoint {source} contains no detector, only {', '.join(prefixes)}")
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
    return Published(path, removed, redacted)


def _upload(directory: Path, repository: str) -> None:
    from huggingface_hub.errors import HTTPError

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload the detector"
        )
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(f"upload to {repository} failed: {hub_reason(error)}") from error


def _public_meta(meta: Mapping[str, Any], source: str, changes: dict[str, str]) -> dict[str, Any]:
    """The kept fields as plain data; a config that is more than literals is removed."""
    kept = {key: _plain(meta[key], changes) for key in KEPT_META if key in meta}
    try:
        config = literal_config(meta.get("cfg", ""), source)
    except UserError as error:
        MMLogger.get_current_instance().warning(f"removed the config: {error}")
        return kept
    if config:
        kept["cfg"] = Config(_plain(config.to_dict(), changes)).pretty_text
    return kept


def _plain(value: Any, changes: dict[str, str], secret: bool = False) -> Any:
    """Values as Python's own types, without absolute paths and secrets."""
    if isinstance(value, Mapping):
        hidden = {key: secret or bool(_SECRET_NAME.fullmatch(str(key))) for key in value}
        return {_plain(key, changes): _plain(value[key], changes, hidden[key]) for key in value}
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
