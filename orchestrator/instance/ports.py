"""Ports of the loopback interface for servers of our own."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

LOWEST = 20_000
TRIES = 100
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Where Linux says which ports it gives to outgoing connections."""


def free_port() -> int:
    """A TCP port of the loopback interface that is free at this moment.

    The server it is meant for listens later, or again after a restart. So that no outgoing connection is given the port
    in between, it lies below the range that the system takes those from, where there is room.
    """
    candidates = range(LOWEST, _first_ephemeral())
    # By chance, so that instances which choose at the same moment do not choose the same.
    for port in secrets.SystemRandom().sample(candidates, min(TRIES, len(candidates))):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now; False for 0."""
    if port == 0:
        return False
    with socket.socket() as probe:
        # As Postgres does, so that a connection in TIME_WAIT does not make the port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _first_ephemeral() -> int:
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        # What IANA names; other systems than Linux keep to it.
        return 49152
