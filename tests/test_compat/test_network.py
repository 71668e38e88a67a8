"""The tests reach only this machine."""

import socket

import pytest

from tests.network import Refused


def test_tests_reach_only_this_machine():
    with pytest.raises(Refused, match="the tests reach only this machine"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(Refused):
        socket.getaddrinfo("example.org", 443)
