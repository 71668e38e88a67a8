"""Keeps the tests off the network: refuses every address that is not of this machine."""

import ipaddress
import socket
import sys


class Refused(socket.gaierror):
    """Error for an address of another machine, as on a machine without a network."""


def stay_here() -> None:
    """Refuses connections and names of other machines in this process from now on."""
    sys.addaudithook(_refuse_outside)


def _refuse_outside(event: str, args: tuple) -> None:
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # a path: of this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not _is_here(host):
        raise Refused(socket.EAI_NONAME, f"{host}: the tests reach only this machine")


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host in ("localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified
