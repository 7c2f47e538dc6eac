"""An instance: everything the product needs on one machine, started, watched and ended together.

Postgres (embedded, or the one of `DATABASE_URL`), the Prefect server, a worker for the `cpu` pool and one for the `gpu`
pool, the policy server and the feedback app. All that is kept lies under the home; all addresses are of this machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.exc import OperationalError

from db.migrate import upgrade
from orchestrator import running_instance
from orchestrator.database import no_answer
from orchestrator.errors import ConfigError, ServiceUnavailable
from orchestrator.http_shared.addresses import bound, reachable
from orchestrator.instance.identity import prefect_at
from orchestrator.instance.ports import free_port, is_free, port_in
from orchestrator.instance.postgres import EmbeddedPostgres
from orchestrator.instance.prefect_api import PrefectApi, prefect_environment
from orchestrator.instance.processes import Child, Supervisor
from orchestrator.running_instance import InstanceFile
from orchestrator.settings import PROJECT_ROOT, normalised_database_url

PREFECT_START_TIMEOUT_S = 120.0
SERVICE_START_TIMEOUT_S = 120.0
POOLS = ("cpu", "gpu")


class Instance:
    """One running instance on one home, as a context manager.

    Ports left at 0 are chosen free and remembered for the next start. A second instance on the same home is refused.
    A service that ends by itself is started again. `config` becomes the default of the `cycle` deployment, and its
    schedule is set; without it both stay as they are. `claim` takes over a Prefect server that the home has and that
    another database claimed.
    """

    def __init__(
        self,
        home: Path,
        *,
        feedback_port: int = 0,
        policy_port: int = 0,
        prefect_port: int = 0,
        host: str = "127.0.0.1",
        workers: bool = True,
        config: Path | None = None,
        claim: bool = False,
        database_url: str | None = None,
        report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self.home = home.expanduser().absolute()
        self.host = host
        self.config = config
        self._claim = claim
        self._ports = {"feedback": feedback_port, "policy": policy_port, "prefect": prefect_port}
        self._with_workers = workers
        self._given_database_url = normalised_database_url(database_url) if database_url else None
        self._report = report
        self.postgres: EmbeddedPostgres | None = None
        self._children: dict[str, Child] = {}
        self._supervisor: Supervisor | None = None
        self._exits = contextlib.ExitStack()
        self.database_url = ""
        self.admin_token = ""

    @property
    def prefect_api_url(self) -> str:
        """URL of Prefect's API; without `/api` it is the UI."""
        return f"http://{reachable(self.host)}:{self._ports['prefect']}/api"

    @property
    def feedback_url(self) -> str:
        """Base URL of the feedback app."""
        return f"http://{reachable(self.host)}:{self._ports['feedback']}"

    @property
    def policy_url(self) -> str:
        """Base URL of the policy server."""
        return f"http://{reachable(self.host)}:{self._ports['policy']}"

    @property
    def children(self) -> dict[str, Child]:
        """The processes by name: `prefect-server`, `worker-cpu`, `worker-gpu`, `policy-server`, `feedback-app`."""
        return self._children

    def env(self) -> dict[str, str]:
        """The environment in which every process of this instance runs, and commands that speak to it."""
        kept = {
            name: value
            for name, value in os.environ.items()
            # Of the user's own Prefect, or of another instance.
            if not name.startswith("PREFECT_") and name not in ("ORCHESTRATOR_ADMIN_TOKEN_FILE",)
        }
        paths = [str(PROJECT_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
        programs = [str(Path(sys.executable).parent), *filter(None, [kept.get("PATH")])]
        return (
            kept
            | prefect_environment(self.home)
            | {
                "PREFECT_API_URL": self.prefect_api_url,
                "ORCHESTRATOR_HOME": str(self.home),
                "DATABASE_URL": self.database_url,
                "ORCHESTRATOR_POLICY_URL": self.policy_url,
                # Behind a proxy people reach it elsewhere than this machine does.
                "ORCHESTRATOR_FEEDBACK_URL": kept.get("ORCHESTRATOR_FEEDBACK_URL") or self.feedback_url,
                "ORCHESTRATOR_ADMIN_TOKEN": self.admin_token,
                "PYTHONPATH": os.pathsep.join(paths),
                "PATH": os.pathsep.join(programs),
                "PYTHONUNBUFFERED": "1",
            }
        )

    def start(self) -> Self:
        """Start everything; returns when all of it answers.

        Raises:
            ServiceUnavailable: the home is taken, or a service does not start; nothing is left running.
            ConfigError: a port or the host can't be had; nothing was started.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        self._exits.enter_context(running_instance.held(self.home))
        self._choose_ports()
        self.admin_token = os.environ.get("ORCHESTRATOR_ADMIN_TOKEN") or _kept_secret(self.home / "admin-token")
        # 1. Prefect's server takes longest to start and needs nothing of ours.
        prefect = self._add("prefect-server", self._prefect_command(), f"{self.prefect_api_url}/health")
        prefect.start()
        # 2. The database, and what only needs the database.
        self._start_database()
        InstanceFile(
            os.getpid(),
            self.database_url,
            self.prefect_api_url,
            self.policy_url,
            self.feedback_url,
            self.admin_token,
        ).write(self.home)
        services = [
            self._add("policy-server", self._service("serve-policy", "policy"), f"{self.policy_url}/health"),
            self._add("feedback-app", self._service("serve-feedback", "feedback"), f"{self.feedback_url}/health"),
        ]
        for child in services:
            child.start()
        # 3. Pools and Prefect deployments, then the workers that serve them.
        prefect.wait_until_healthy(PREFECT_START_TIMEOUT_S)
        self._ensure_own_child()
        self._register()
        for pool in POOLS if self._with_workers else ():
            self._add(f"worker-{pool}", _command("worker", "--pool", pool)).start()
        for child in services:
            child.wait_until_healthy(SERVICE_START_TIMEOUT_S)
        self._supervisor = Supervisor(self._look_after)

    def stop(self) -> None:
        """End everything, the database last."""
        if self._supervisor is not None:
            self._supervisor.pause()
        # Workers first: a run they are in must not meet a server that is gone.
        for wave in (("worker-cpu", "worker-gpu"), ("feedback-app", "policy-server", "prefect-server")):
            children = [self._children[name] for name in wave if name in self._children]
            for child in children:
                child.ask_to_stop()
            for child in children:
                child.stop()
        if self.postgres is not None:
            self.postgres.stop()
            self.postgres = None
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        self._exits.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _choose_ports(self) -> None:
        kept = running_instance.remembered(self.home)
        bound(self.host, 0).close()
        for name, key in (("feedback", "feedback_url"), ("policy", "policy_url"), ("prefect", "prefect_api_url")):
            if self._ports[name] == 0:
                port = port_in(kept.get(key))
                self._ports[name] = port if is_free(port, self.host) else free_port()
            else:
                self._ensure_free(name)

    def _ensure_free(self, name: str) -> None:
        """Refuse a port that was asked for and can't be had; the error says whose Prefect server answers there."""
        try:
            bound(self.host, self._ports[name], f"--{name}-port").close()
        except ConfigError as error:
            found = prefect_at(self.prefect_api_url) if name == "prefect" else ""
            raise ConfigError(f"{error} {found}".strip()) from None

    def _start_database(self) -> None:
        if self._given_database_url is not None:
            self.database_url = self._given_database_url
        else:
            self.postgres = EmbeddedPostgres(self.home / "postgres").start()
            self.database_url = self.postgres.url
        try:
            upgrade(self.database_url)
        except OperationalError as error:
            raise no_answer(error, self.database_url) from None

    def _add(self, name: str, command: list[str], health_url: str | None = None) -> Child:
        # Each child gets what is known when it is started; the database's address comes after Prefect's server.
        child = Child(name, command, self.env(), self.home / "logs" / f"{name}.log", health_url)
        self._children[name] = child
        return child

    def _prefect_command(self) -> list[str]:
        port = str(self._ports["prefect"])
        # Ours, since Prefect's own never plans a run; see there.
        start = ["-m", "flows.prefect_server", "server", "start"]
        return [sys.executable, *start, "--host", self.host, "--port", port]

    def _service(self, command: str, port: str) -> list[str]:
        return _command(command, "--host", self.host, "--port", str(self._ports[port]))

    def _ensure_own_child(self) -> None:
        """What answers must be the server that was just started, not one that took the port meanwhile."""
        home = PrefectApi(self.prefect_api_url).server_home()
        if home != str(self.home / "prefect"):
            raise ServiceUnavailable(
                f"At {self.prefect_api_url} another Prefect server answers (its PREFECT_HOME: {home or 'not told'}), "
                "which took the port while this one started. Nothing was written there. Start again, or choose "
                "another --prefect-port."
            )

    def _register(self) -> None:
        options = ["--config", str(self.config.absolute())] if self.config is not None else []
        options += ["--claim"] if self._claim else []
        done = subprocess.run(
            _command("register", *options),
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceUnavailable(f"Prefect's work pools and deployments were not created. It said:\n{done.stdout}")

    def _look_after(self) -> None:
        if self.postgres is not None and self.postgres.pid is None:
            self._report("The embedded Postgres ended; it is started again.")
            with contextlib.suppress(ServiceUnavailable):
                self.postgres.start()
        for child in self._children.values():
            child.restart_if_ended(self._report)


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *words]


def _kept_secret(path: Path) -> str:
    """The secret in the file, made at the first look; readable by its owner alone."""
    with (
        contextlib.suppress(FileExistsError),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file,
    ):
        file.write(secrets.token_hex(16) + "\n")
    return path.read_text().strip()


def reaching(home: Path) -> str:
    """What a person types in another terminal, so that commands there reach the instance on the home."""
    # A new terminal has not activated what this one may have.
    activate = Path(sys.executable).parent / "activate"
    first = f". {shlex.quote(str(activate))} && " if activate.exists() else ""
    return f"{first}export ORCHESTRATOR_HOME={shlex.quote(str(home))}"


def addresses(instance: Instance) -> dict[str, str]:
    """What a person needs to know about a running instance."""
    return {
        "Prefect UI": instance.prefect_api_url.removesuffix("/api"),
        "feedback app": instance.feedback_url,
        "policy server": instance.policy_url,
        "home": str(instance.home),
    }
