"""Nothing goes to the network by itself: not by importing, not in the tests."""

import socket

import pytest

from tests.network import Refused
from tests.processes import ROOT, run_python

# Imports the package, or runs the head of a tool, and tells what was asked of the network.
WATCHED = """
import runpy, socket, sys
seen = []
asked = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind",
         "socket.sendto", "urllib.Request", "http.client.connect")
sys.addaudithook(lambda event, args: seen.append(event) if event in asked else None)
import ropevit_mmdet
for tool in sys.argv[1:]:
    runpy.run_path(tool, run_name="imported")
quiet = list(seen)
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1).close()
except OSError:
    pass
print("asked:", quiet, "then:", sorted(set(seen[len(quiet):])))
"""


def test_importing_asks_nothing_of_the_network():
    tools = sorted((ROOT / "tools").glob("*.py"))
    done = run_python("-c", WATCHED, *tools, path=ROOT / "tools")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "asked: [] then: ['socket.connect', 'socket.getaddrinfo']" in done.stdout


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80)])
def test_tests_reach_this_machine_alone(address):
    with pytest.raises(Refused, match="the tests reach this machine alone"):
        socket.create_connection(address, timeout=1)
    kind = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(kind) as outside, pytest.raises(Refused):
        outside.connect(address)
    with pytest.raises(Refused):
        socket.getaddrinfo("example.org", 443)


def test_this_machine_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
