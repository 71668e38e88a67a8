"""Importing and parsing need no network, and the tests reach only this machine."""

import socket

import pytest

from tests.network import Refused
from tests.processes import run_python

PROGRAM = """
import sys
calls = []
watched = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
sys.addaudithook(lambda event, args: calls.append(event) if event in watched else None)
import ropevit_mmdet
from ropevit_cli.main import build_parser
build_parser()
assert not calls, calls
"""


def test_imports_make_no_network_call():
    done = run_python("-c", PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tests_reach_only_this_machine():
    with pytest.raises(Refused, match="the tests reach only this machine"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(Refused):
        socket.getaddrinfo("example.org", 443)
