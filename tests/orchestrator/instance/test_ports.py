"""Ports for servers of our own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchestrator.instance import ports
from orchestrator.instance.ports import free_port, is_free


@pytest.fixture
def ephemeral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the system says where its range begins; absent at first."""
    file = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "EPHEMERAL", file)
    return file


def test_a_free_port_lies_below_what_outgoing_connections_get(ephemeral: Path) -> None:
    ephemeral.write_text("20010\t60999\n")
    chosen = {free_port() for _ in range(50)}
    assert min(chosen) >= 20_000
    assert max(chosen) < 20_010
    # Two that choose at the same moment must not choose the same.
    assert len(chosen) > 1


def test_without_the_file_the_range_is_that_of_iana(ephemeral: Path) -> None:
    assert not ephemeral.exists()
    assert all(20_000 <= free_port() < 49_152 for _ in range(50))


def test_where_there_is_no_room_below_any_free_port_is_taken(ephemeral: Path) -> None:
    ephemeral.write_text("1024\t65535\n")
    assert is_free(free_port())


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])
    assert not is_free(0)
