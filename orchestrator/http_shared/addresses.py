"""Addresses that servers of ours listen on: a port in range, a host of this machine, and both as a URL."""

from __future__ import annotations

import argparse
import errno
import socket

from orchestrator.errors import ConfigError

HIGHEST_PORT = 65_535


def port_number(text: str) -> int:
    """The port in an option of a command; 0 stands for a free one.

    Raises:
        argparse.ArgumentTypeError: no number, or out of range.
    """
    if not text.isdecimal() or int(text) > HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a port, 1 to {HIGHEST_PORT}, or 0 for a free one")
    return int(text)


def in_url(host: str) -> str:
    """The host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def reachable(host: str) -> str:
    """The host at which this machine reaches a server that listens there, as a URL has it."""
    return in_url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))


def bound(host: str, port: int, port_option: str = "--port") -> socket.socket:
    """A socket that is bound there and does not listen yet.

    Raises:
        ConfigError: the host is not this machine's, or the port is taken or none; says what to choose.
    """
    if not 0 <= port <= HIGHEST_PORT:
        raise ConfigError(f"{port_option} is {port}; expected 1 to {HIGHEST_PORT}, or 0 for a free one.")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # A restart on the same port must not wait for the old connections' TIME_WAIT to pass.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        return listener
    except OSError as error:
        listener.close()
        raise ConfigError(why_not(host, port, error, port_option)) from None


def why_not(host: str, port: int, error: OSError, port_option: str) -> str:
    """Why nothing can listen there, and what to choose instead."""
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return (
            f"Can't listen on {host}: this machine has no such address ({error.strerror}). Choose another --host: "
            "127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses, or one that `ip address` lists."
        )
    return f"Can't listen on {host} port {port}: {error.strerror}. Choose another {port_option}, or 0 for a free one."
