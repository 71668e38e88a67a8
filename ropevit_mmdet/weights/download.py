"""Fetch one file over HTTP: it resumes, is bounded in time and size, and trusts no server's word.

Ranges and validators as in RFC 9110, sections 13.1.5 (If-Range) and 14 (206, 416).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ropevit_mmdet.weights.request import DownloadError, ask

MB = 2**20  # bytes
RESERVE = 256 * MB  # of the disk, which a download leaves free
SLOWEST = 32 * 1024  # bytes per second; less than that is a server that stalls
_AVERAGED = 2  # times the timeout
_LONGEST = 300  # characters of a server that a message quotes


def fetch(
    url: str, part: Path, *, name: str, limit: int | None, hashed: bool, timeout: float
) -> None:
    """Makes ``part`` the whole file of a URL, flushed to the disk; continues with what it holds.

    Args:
        name: what the progress bar calls the file.
        limit: bytes; a server that announces more is refused.
        hashed: whether the caller knows the file's hash. If not, a part is only continued where
            the server vouches for it being of the same version.
        timeout: seconds that the server may be silent; in twice that it must also send 32 KB/s on
            average.

    Raises:
        DownloadError: what went wrong, in one line. The part stays where it can be continued.
    """
    try:
        _fetch(url, part, name=name, limit=limit, hashed=hashed, timeout=timeout)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise DownloadError(_reason(error, timeout)) from error


def forget(part: Path) -> None:
    """Removes a part and what is noted about it."""
    part.unlink(missing_ok=True)
    record_of(part).unlink(missing_ok=True)


def shown(url: str) -> str:
    """A URL for messages and records: password and query left out, for they may be secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0]}://..."
    query = "?..." if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def url_digest(url: str) -> str:
    """Tells URLs apart in records."""
    return hashlib.sha256(url.encode(errors="replace")).hexdigest()


def record_of(path: Path) -> Path:
    """Where a file's record is kept: beside it."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> dict[str, Any]:
    """What is noted about a file; empty where nothing is, or where the record was truncated."""
    try:
        record = json.loads(record_of(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Notes something about a file, in place of what was noted before."""
    record_of(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _fetch(
    url: str, part: Path, *, name: str, limit: int | None, hashed: bool, timeout: float
) -> None:
    record = read_record(part)
    version = record.get("version")
    known = record.get("url_sha256") == url_digest(url) and (hashed or version)
    offset = part.stat().st_size if known and part.is_file() else 0
    headers = {"User-Agent": "ropevit_mmdet", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if not hashed:
            headers["If-Range"] = version
    try:
        response = ask(url, headers, timeout)
    except urllib.error.HTTPError as error:
        error.close()  # unread
        if not offset or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        forget(part)  # longer than the file, or all of another version
        _fetch(url, part, name=name, limit=limit, hashed=hashed, timeout=timeout)
        return
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            offset = 0
        total = _announced(response, offset, limit)
        free = shutil.disk_usage(part.parent).free
        if total - offset > free - RESERVE:
            raise DownloadError(
                f"it takes {(total - offset) / MB:.1f} MB, and {part.parent} has "
                f"{free / MB:.1f} MB left, {RESERVE // MB} of which stay free"
            )
        if not offset:
            version = _version(response.headers)
            write_record(part, {"url_sha256": url_digest(url), "version": version})
        try:
            _receive(response, part, name=name, offset=offset, total=total, timeout=timeout)
        except _CutShortError as error:
            if hashed or version:
                raise DownloadError(f"{error}; another attempt continues from there") from error
            forget(part)
            raise DownloadError(
                f"{error}; another attempt starts again, as nothing says which version it is"
            ) from error


def _announced(response: http.client.HTTPResponse, offset: int, limit: int | None) -> int:
    """Bytes of the whole file, as the server says; what contradicts itself is refused."""
    length, encoding = response.length, response.headers.get("Content-Encoding", "identity")
    if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise DownloadError(f"the server answers {response.status} {_line(response.reason)}")
    if length is None or encoding != "identity":
        raise DownloadError("the server does not say how long the file is")
    total = offset + length
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        said = response.headers.get("Content-Range")
        if said != f"bytes {offset}-{total - 1}/{total}":
            raise DownloadError(
                f"asked for bytes from {offset} on, the server sends {length} that it calls "
                f"{_line(said)}"
            )
    if limit is not None and total > limit:
        raise DownloadError(f"the server announces {total / MB:.1f} MB, which is too much")
    return total


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    *,
    name: str,
    offset: int,
    total: int,
    timeout: float,
) -> None:
    to_the_end = response.will_close
    if to_the_end:
        response.length = None  # has http.client read on, so that more than announced is seen
    bar = tqdm(
        desc=name,
        initial=offset,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # seconds; log files need few lines
    )
    have, since, had = offset, time.monotonic(), offset
    with bar, part.open("ab" if offset else "wb") as file:
        while have < total or to_the_end:
            try:
                block = response.read1(MB)
            except (OSError, http.client.HTTPException) as error:
                if have == total:
                    break  # it did not close the connection as it said, but the file is here
                raise _cut_short(_reason(error, timeout), have, total) from error
            if not block:
                break
            have += len(block)
            if have > total:
                break
            file.write(block)
            bar.update(len(block))
            if (elapsed := time.monotonic() - since) > _AVERAGED * timeout:
                if have - had < SLOWEST * elapsed and have < total:
                    raise _cut_short(
                        f"the server sent less than {SLOWEST // 1024} KB/s for {elapsed:.1f} s",
                        have,
                        total,
                    )
                since, had = time.monotonic(), have
        file.flush()
        os.fsync(file.fileno())
    if have < total:
        raise _cut_short("the server hung up", have, total)
    if have > total:
        forget(part)
        raise DownloadError(f"the server announced {total} bytes and sent more")


class _CutShortError(Exception):
    """The server did not send all that it announced."""


def _cut_short(reason: str, have: int, total: int) -> _CutShortError:
    return _CutShortError(
        f"{reason} after {have} of {total} bytes ({have / MB:.1f} of {total / MB:.1f} MB)"
    )


def _version(headers: http.client.HTTPMessage) -> str | None:
    """What If-Range may name a file's version by: a strong ETag, else its date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {_line(error.reason)}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"the server sent nothing for {timeout:g} s"
    if isinstance(cause, http.client.InvalidURL):
        return "the URL is invalid"  # what it says quotes it, secrets and all
    return _line(cause) or type(cause).__name__


def _line(said: object) -> str:
    """What a server said, fit for a terminal: one line, not too long, without its control codes."""
    text = "".join(char if char.isprintable() else " " for char in str(said))
    return " ".join(text.split())[:_LONGEST]
