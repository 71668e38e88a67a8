"""Checkpoints given by path, by URL or by birder's name, as files here: fetched once and verified.

The cache is torch.hub's, under the file names of the URLs, as mmengine's own http loading has it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import logging
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from ropevit_mmdet.compat.reading import LEGACY, local_file
from ropevit_mmdet.weights.download import (
    MB,
    DownloadError,
    fetch,
    forget,
    read_record,
    shown,
    url_digest,
    write_record,
)
from ropevit_mmdet.weights.published import WEIGHTS

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.%+~=@,-]{0,199}")


def resolve_weights(checkpoint: str | Path, *, timeout: float = 30.0) -> Path:
    """The local file of a checkpoint.

    Args:
        checkpoint: a path; ``http(s)://...``, downloaded once into the cache directory; or
            ``birder://NAME``, the same for a file of ``weights.published``, whose sha256 must fit.
        timeout: seconds that a server may be silent; it must also send 32 KB/s on average.

    Raises:
        FileNotFoundError: no file at a local path.
        ValueError: an unknown name or scheme, a URL that names no file, or one whose file name in
            the cache belongs to another URL.
        DownloadError: no network, no such file, a server that stalls or cuts short, a wrong hash,
            a page instead of a checkpoint, a full disk; says how to put the file in its place by
            hand. What came is kept in a ``.part`` file, which the next call continues with, where
            hash or server tell its version.
    """
    if isinstance(checkpoint, Path) or "://" not in checkpoint:
        path = local_file(checkpoint)
        if path is None:
            raise FileNotFoundError(f"checkpoint not found: {checkpoint}")
        return path
    source = _source(checkpoint)
    if _in_cache(source):
        return source.path
    try:
        source.path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(source.path)
    except OSError as error:
        raise source.failed(f"{error}; TORCH_HOME moves the directory") from error
    with lock:
        if not _in_cache(source):
            _download(source, timeout)
    return source.path


def cache_directory() -> Path:
    """Where downloads are kept: ``checkpoints`` in torch.hub's directory, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints"


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file on a server, and its place in the cache."""

    url: str
    path: Path
    sha256: str | None = None
    megabytes: float | None = None

    def failed(self, reason: str) -> DownloadError:
        facts = f" ({self.megabytes} MB, sha256 {self.sha256})" if self.sha256 else ""
        return DownloadError(
            f"download of {self.path.name} failed: {reason}. By hand: fetch {shown(self.url)}"
            f"{facts} and put it at {self.path}"
        )


def _source(checkpoint: str) -> _Source:
    scheme, _, name = checkpoint.partition("://")
    if scheme == "birder":
        if name not in WEIGHTS:
            close = difflib.get_close_matches(name, WEIGHTS, n=3) or ["what list_weights.py prints"]
            raise ValueError(
                f"{checkpoint!r}: birder publishes no RoPE ViT of that name; did you mean "
                f"{' or '.join(close)}?"
            )
        published = WEIGHTS[name]
    elif scheme in ("http", "https"):
        plain = checkpoint.partition("?")[0]
        published = next((known for known in WEIGHTS.values() if known.url == plain), None)
    else:
        raise ValueError(
            f"checkpoint {scheme}://...: give a path, http(s)://... or birder://NAME instead"
        )
    url = published.url if published else checkpoint
    try:
        file_name = urlsplit(url).path.rpartition("/")[2]
    except ValueError:  # it quotes what may be secret
        raise ValueError(f"checkpoint {scheme}://...: its host is invalid") from None
    if not _FILE_NAME.fullmatch(file_name):
        raise ValueError(f"checkpoint {shown(url)} does not end in the name of a file")
    return _Source(
        url=url,
        path=cache_directory() / file_name,
        sha256=published.sha256 if published else None,
        megabytes=published.megabytes if published else None,
    )


def _in_cache(source: _Source) -> bool:
    """Whether the file is there; where its hash is known, it is verified once and again if touched.

    A file that was put there by hand counts: it has no record yet.
    """
    if not source.path.is_file():
        return False
    record = read_record(source.path)
    if {key: record.get(key) for key in ("size", "mtime_ns")} != _state_of(source.path):
        record = {}  # of an earlier file
    if source.sha256 is None:
        if record.get("url_sha256", url_digest(source.url)) != url_digest(source.url):
            raise ValueError(
                f"{source.path} came from {record.get('url')}, not from {shown(source.url)}: "
                "delete it, or give its path as the checkpoint if it is the right file"
            )
        return not record or _is_checkpoint(source.path)  # put there by hand: for its reader to say
    if record.get("sha256") != source.sha256:
        found = sha256_of(source.path)
        if found != source.sha256:
            raise source.failed(
                f"another file is at {source.path}, of sha256 {found} instead of {source.sha256}; "
                "delete it and run again"
            )
        _note(source)
    return True


def _lock(path: Path) -> AcquireReturnProxy:
    """The lock of a download, taken: of several processes one downloads and the others wait."""
    lock = FileLock(path.with_name(f"{path.name}.lock"), fallback_to_soft=False)
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        logging.getLogger(__name__).warning("waiting for the process that downloads %s", path.name)
        return lock.acquire()


def _download(source: _Source, timeout: float) -> None:
    part = source.path.with_name(f"{source.path.name}.part")
    limit = None if source.megabytes is None else int(MB * (1.01 * source.megabytes + 1))
    hashed = source.sha256 is not None
    try:
        fetch(source.url, part, name=source.path.name, limit=limit, hashed=hashed, timeout=timeout)
    except DownloadError as error:
        raise source.failed(str(error)) from error
    if hashed:
        found = sha256_of(part)
        if found != source.sha256:
            forget(part)
            raise source.failed(
                f"what came has sha256 {found} instead of {source.sha256} and was deleted"
            )
    elif not _is_checkpoint(part):
        with part.open("rb") as file:
            start = file.read(20)
        forget(part)
        raise source.failed(f"what came begins with {start!r}, is no checkpoint and was deleted")
    os.replace(part, source.path)
    forget(part)
    _note(source)


def _is_checkpoint(path: Path) -> bool:
    """Whether a file begins as those of torch and safetensors do, and no page of a server."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY))
    header = int.from_bytes(start[:8], "little")  # bytes of JSON
    is_safetensors = start[8:9] == b"{" and header < path.stat().st_size
    return start.startswith((b"PK\3\4", LEGACY)) or is_safetensors


def _note(source: _Source) -> None:
    """Records where a file came from and that it was verified, while it stays as it is."""
    origin = {"url": shown(source.url), "url_sha256": url_digest(source.url)}
    record = {**origin, "sha256": source.sha256, **_state_of(source.path)}
    try:
        write_record(source.path, record)
    except OSError as error:  # a cache that may be read only: verified again each time
        logging.getLogger(__name__).info("no record of %s: %s", source.path.name, error)


def _state_of(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MB):
            digest.update(block)
    return digest.hexdigest()
