"""Ports for servers of our own."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError
from orchestrator.http_shared.addresses import HIGHEST_PORT, bound

LOWEST = 20_000
TRIES = 100
CAN_RESERVE = sys.platform == "linux"
"""Whether a server may listen on a port that is bound by a socket which does not: Linux allows it, BSD does not."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Where Linux says which ports it gives to outgoing connections."""


def free_port() -> int:
    """A TCP port of the loopback interface that is free at this moment.

    The server it is meant for listens later, or again after a restart. So that no outgoing connection is given the port
    in between, it lies below the range that the system takes those from, where there is room. So that nobody who asks
    here is given it either, this process keeps it bound until it ends (on Linux): a server that sets SO_REUSEADDR, as
    all of ours do, can listen on it, and a look that does not set it finds it taken.
    """
    candidates = range(LOWEST, _first_ephemeral())
    # By chance, so that instances which choose at the same moment do not choose the same.
    for port in secrets.SystemRandom().sample(candidates, min(TRIES, len(candidates))):
        if _reserve(port) if CAN_RESERVE else is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now; False for 0 and for what is no port."""
    if not 0 < port <= HIGHEST_PORT:
        return False
    try:
        # As Postgres does, so that a connection in TIME_WAIT does not make the port look taken.
        bound(host, port).close()
    except ConfigError:
        return False
    return True


def port_in(url: object) -> int:
    """The port that a URL names; 0 where it names none, or one that can't be."""
    try:
        return urlsplit(str(url)).port or 0
    except ValueError:
        return 0


_reserved: list[socket.socket] = []


def _reserve(port: int) -> bool:
    """Keep the port for a server to come; False where anything has it bound, a reservation included."""
    keeper = socket.socket()
    try:
        keeper.bind(("127.0.0.1", port))
    except OSError:
        keeper.close()
        return False
    # After the binding on purpose: set before, it would let two keepers bind the same port.
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _reserved.append(keeper)
    return True


def _first_ephemeral() -> int:
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        # What IANA names; other systems than Linux keep to it.
        return 49152
