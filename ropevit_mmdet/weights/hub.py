"""Checkpoints named by path, URL, `birder://`, `timm://` or `hf://`, as verified local files."""

import contextlib
import hashlib
import http.client
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from filelock import FileLock

from ropevit_mmdet.compat.checkpoint import existing_file, shards
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import closest
from ropevit_mmdet.weights.other_architectures import TIMM
from ropevit_mmdet.weights.published import WEIGHTS, PublishedWeights

SCHEMES = ("file", "http", "https", "hf", "birder", "timm")

NAMELESS = ("model", "pytorch_model")  # stems of files that only their repository names
NEIGHBORS = ("config.json", "preprocessor_config.json")  # which say what such a file is

_HUB = re.compile(  # repository, revision, file
    r"(?:hf://([^/@]+/[^/@]+)(?:@([^/]+))?|"
    r"https://huggingface\.co/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+))/([^?]+)(?:\?.*)?"
)


def resolve_weights(source: str | Path) -> Path:
    """Returns the local file of a checkpoint, downloaded if it is not there.

    Args:
        source: a path; an http(s) or file URL; `birder://NAME` or `timm://NAME[.TAG]`, of
            `ropevit weights`; or `hf://OWNER/REPO[@REVISION]/FILE`, a file of the Hugging Face Hub.
            URLs of files on that hub, and of their pages, are the same as `hf://`.

    Returns:
        The path of an existing file.

    Raises:
        UserError: no such file, name or scheme; a download that failed; a file with another sha256
            than birder published, which is deleted.
    """
    scheme, separator, name = str(source).partition("://")
    if not separator:
        return existing_file(source)
    if scheme == "file":
        return existing_file(url2pathname(urlsplit(str(source)).path))
    url, published = _located(str(source))
    if not (published or scheme in ("http", "https") or _HUB.fullmatch(url)):
        raise UserError(f"checkpoint {source}: {_expected(scheme, name)}")
    path = (published and cached_file(published)) or _download(url)
    if published:
        _verify(path, published)
    return path


def hub_repository(source: str) -> str | None:
    """`OWNER/REPO` on the Hugging Face Hub that a checkpoint comes from; None for other sources."""
    address = _hub_address(_located(source)[0])
    return address["repo_id"] if address else None


def _located(source: str) -> tuple[str, PublishedWeights | None]:
    """The URL that a source means, and the entry of weights that birder published."""
    scheme, _, name = source.partition("://")
    plain = source.partition("?")[0]
    known = (entry for entry in WEIGHTS.values() if entry.url == plain)
    published = WEIGHTS.get(name) if scheme == "birder" else next(known, None)
    if scheme == "timm" and name.partition(".")[0] in TIMM:
        tagged = name if "." in name else f"{name}.{TIMM[name].tag}"
        return f"hf://timm/{tagged}/model.safetensors", None
    return published.url if published else source, published


def hub_reason(error: Exception) -> str:
    """One line with the fix, for what huggingface_hub explains in several."""
    from huggingface_hub import errors

    login = "log in with `hf auth login` or set HF_TOKEN"
    reasons = {
        errors.LocalEntryNotFoundError: "check the connection, and that HF_HUB_OFFLINE is not set",
        errors.GatedRepoError: f"the repository is gated: accept its terms on its page and {login}",
        errors.RepositoryNotFoundError: f"no such repository, or a private one: {login}",
        errors.RevisionNotFoundError: "the repository has no such revision",
        errors.EntryNotFoundError: "the repository has no such file",
    }
    status = getattr(getattr(error, "response", None), "status_code", None)
    matching = [text for category, text in reasons.items() if isinstance(error, category)]
    if status in (401, 403):
        matching.append(f"the hub refuses the token ({status}): {login}, with one of these rights")
    return (matching or [str(error).partition("\n")[0] or type(error).__name__])[0]


def cached_file(published: PublishedWeights) -> Path | None:
    """The file of published weights in the directory of torch.hub or in the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    path, address = _downloaded(published.url), _hub_address(published.url)
    cached = address and try_to_load_from_cache(**address)
    if isinstance(cached, str) and not path.is_file():
        path = Path(cached)
    return path if path.is_file() else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; computed once per process and version."""
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expected(scheme: str, name: str) -> str:
    known: dict[str, Iterable[str]] = dict(birder=WEIGHTS, timm=TIMM)
    if scheme in known:
        fix = closest(name, known[scheme]) or "; `ropevit weights` lists them"
        return f"{scheme} publishes no RoPE ViT of that name{fix}"
    return (
        "expected a path, an http(s) URL, birder://NAME, timm://NAME or "
        "hf://OWNER/REPO[@REVISION]/FILE"
    )


def _downloaded(url: str) -> Path:
    """Where torch.hub keeps the file of a URL; TORCH_HOME moves it.

    The name of a file that neither birder published nor ends in a hash, which torch.hub expects,
    gets the hash of the URL: others end in `model.pth` too.
    """
    path = Path(urlsplit(url).path.rpartition("/")[2] or "checkpoint")
    if not _located(url)[1] and not re.search(r"-(?!\d+$)[0-9a-f]{8,}$", path.stem):
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        path = path.with_stem(f"{path.stem}-{digest}")
    return Path(torch.hub.get_dir()) / "checkpoints" / path


def _hub_address(url: str) -> dict[str, Any] | None:
    """Arguments of `hf_hub_download` for a file on the Hugging Face Hub; None for other URLs."""
    match = _HUB.fullmatch(url)
    if match is None:
        return None
    return dict(repo_id=match[1] or match[3], revision=match[2] or match[4], filename=match[5])


def _download(url: str) -> Path:
    from huggingface_hub.errors import HTTPError

    target, address = _downloaded(url), _hub_address(url)
    try:
        if address is not None:
            return _download_from_hub(address)
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # of several processes one downloads
            if not target.is_file():
                torch.hub.download_url_to_file(url, str(target))
        return target
    except (OSError, ValueError, http.client.HTTPException, HTTPError) as error:
        is_read = address is None or _located(url)[1]  # see `cached_file`
        by_hand = f"; or download {url} to {target}" if is_read else ""
        raise UserError(f"download of {url} failed: {hub_reason(error)}{by_hand}") from error


def _download_from_hub(address: Mapping[str, Any]) -> Path:
    """Also the parts of an index, and what says which architecture and normalization it has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = PurePosixPath(address["filename"])
    for name in NEIGHBORS if path.name.partition(".")[0] in NAMELESS else ():
        with contextlib.suppress(EntryNotFoundError):  # the repository has none
            hf_hub_download(**{**address, "filename": str(path.with_name(name))})
    file = Path(hf_hub_download(**address))
    for part in shards(file):
        hf_hub_download(**{**address, "filename": str(path.with_name(part.name))})
    return file


def _verify(path: Path, published: PublishedWeights) -> None:
    """Deletes a file that is not the published one."""
    if sha256_of(path) == published.sha256:
        return
    target = _downloaded(published.url)
    if path != target:
        path.resolve().unlink()  # in the hub's cache the path is a link to the content
    path.unlink(missing_ok=True)
    raise UserError(
        f"{path} had another sha256 than {published.sha256}, which birder published, and was "
        f"deleted: try again, or download {published.url} to {target}"
    )
