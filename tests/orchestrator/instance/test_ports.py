"""Ports for servers of our own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.instance import ports
from orchestrator.instance.ports import free_port, is_free
from tests.paths import PROJECT_ROOT


@pytest.fixture
def ephemeral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the system says where its range begins; absent at first."""
    file = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "EPHEMERAL", file)
    return file


def test_a_free_port_lies_below_what_outgoing_connections_get(ephemeral: Path) -> None:
    ephemeral.write_text("20010\t60999\n")
    # Fewer than there are, so that other servers of the machine may have some.
    chosen = [free_port() for _ in range(5)]
    assert min(chosen) >= 20_000
    assert max(chosen) < 20_010
    # None is given twice, though nobody listens yet.
    assert len(set(chosen)) == 5


def test_without_the_file_the_range_is_that_of_iana(ephemeral: Path) -> None:
    assert not ephemeral.exists()
    assert all(20_000 <= free_port() < 49_152 for _ in range(50))


def test_where_there_is_no_room_below_any_free_port_is_taken(ephemeral: Path) -> None:
    ephemeral.write_text("1024\t65535\n")
    assert is_free(free_port())


@pytest.mark.skipif(not ports.CAN_RESERVE, reason="only Linux lets a server listen on a port that is kept for it")
def test_a_port_is_kept_from_other_processes_until_its_server_listens_and_after_it(ephemeral: Path) -> None:
    ephemeral.write_text("30000\t60999\n")
    port = free_port()
    code = (
        "import sys; from orchestrator.instance import ports\n"
        "ports.LOWEST, ports._first_ephemeral = int(sys.argv[1]), lambda: int(sys.argv[1]) + 1\n"
        "print(ports.free_port())"
    )

    def chosen_elsewhere() -> int:
        """What another process chooses that has this one port to choose from, or any that the system gives."""
        run = subprocess.run(
            [sys.executable, "-c", code, str(port)], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert chosen_elsewhere() != port
    for _ in range(2):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=10):
                server.accept()[0].close()
            assert not is_free(port)
    assert chosen_elsewhere() != port


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])
    assert not is_free(0)
