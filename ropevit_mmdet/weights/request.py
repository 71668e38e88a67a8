"""Ask an HTTP server for something: redirects followed with care, bounded in time, nothing read.

Redirects as in RFC 9110, section 15.4; credentials in a URL become basic authentication, RFC 7617.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import queue
import socket
import string
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

HEADER_TIMEOUT = 4  # times the timeout
MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)


class DownloadError(OSError):
    """A file could not be fetched."""


def ask(url: str, headers: Mapping[str, str], timeout: float) -> http.client.HTTPResponse:
    """The answer to a GET, redirects followed, its headers read and its body not.

    A server that drips headers, or sends them without end, is never silent: hence a thread of its
    own, whose connection is cut after 4 times `timeout` (seconds).

    Raises:
        DownloadError: that, and redirects that are not followed.
        OSError, HTTPException, UnicodeError: as urllib has it; HTTPError, whose body is open, for a
            status that is no success.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()
    line = _Line()

    def follow() -> None:
        try:
            answers.put(_follow(url, headers, timeout, line))
        except BaseException as error:  # it is raised where it is waited for
            answers.put(error)

    threading.Thread(target=follow, daemon=True).start()
    try:
        answer = answers.get(timeout=HEADER_TIMEOUT * timeout)
    except queue.Empty:
        line.cut()
        raise DownloadError(
            f"the server has not finished its answer's headers after {HEADER_TIMEOUT * timeout:g} s"
        ) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _follow(
    url: str, headers: Mapping[str, str], timeout: float, line: _Line
) -> http.client.HTTPResponse:
    opener, authorization = _opener(line), {}
    for _ in range(MOST_REDIRECTS + 1):
        parts = urlsplit(url)
        login, _, host = parts.netloc.rpartition("@")
        if login:
            encoded = base64.b64encode(unquote_to_bytes(login)).decode()
            authorization = {"Authorization": f"Basic {encoded}"}
        plain = parts._replace(netloc=host, fragment="").geturl()
        request = urllib.request.Request(plain, headers={**headers, **authorization})
        try:
            return opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            if error.code not in _REDIRECTS or "Location" not in error.headers:
                raise
            error.close()  # its body may be without end
            url = _target(plain, error.headers["Location"])
        if urlsplit(url)[:2] != urlsplit(plain)[:2]:
            authorization = {}  # which is for the first server alone
    raise DownloadError(f"the server redirects more than {MOST_REDIRECTS} times")


def _target(url: str, location: str) -> str:
    """Where a redirect leads: to http and https alone, and never from https to http."""
    try:
        target = urljoin(url, quote(location, string.punctuation, "latin1"))
        scheme, before = urlsplit(target).scheme, urlsplit(url).scheme
    except ValueError:
        raise DownloadError("the server redirects to no URL") from None
    if scheme != "https" and (scheme != "http" or before != "http"):
        raise DownloadError(f"the server redirects from {before}: to {scheme}:, refused")
    return target


class _Line:
    """The connections of one attempt, which another thread may cut."""

    def __init__(self) -> None:
        self.connections: list[http.client.HTTPConnection] = []
        self.is_cut = False

    def cut(self) -> None:
        """Has whoever reads from them find their end."""
        self.is_cut = True
        for connection in self.connections:
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # the other side was faster
                    connection.sock.shutdown(socket.SHUT_RDWR)


class _CutConnection:
    """Notes a connection in a line, also where it is made after that was cut."""

    def __init__(self, *args, line: _Line, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.line = line
        line.connections.append(self)

    def connect(self) -> None:
        super().connect()
        if self.line.is_cut:
            self.close()
            raise TimeoutError


class _HTTPConnection(_CutConnection, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_CutConnection, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.line = line

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPConnection, line=self.line), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPSConnection, line=self.line), request)


def _opener(line: _Line) -> urllib.request.OpenerDirector:
    """An opener that can do http and https alone, through a proxy where one is set."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(line),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),  # of a proxy that is none of HTTP
    ):
        opener.add_handler(handler)
    return opener
