"""Where things run: the environment, read in this one place.

Nothing here enters a fingerprint: the same cycle on another machine is the same cycle. What to train and how
is in `config/`.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

from orchestrator import running_instance
from orchestrator.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# A wheel has them inside this package, a clone beside it.
_PACKAGED = Path(__file__).resolve().parent / "examples"
EXAMPLES = _PACKAGED if _PACKAGED.is_dir() else PROJECT_ROOT / "examples"

GateAction = Literal["log", "flag", "refuse"]
"""What becomes of a request that is far from what the policy was trained to answer."""
DIGEST = re.compile(r"(sha256:)?[0-9a-f]{6,64}")
"""A digest, or its beginning."""


@dataclass(frozen=True)
class Settings:
    """The instance's home and the addresses of its services, from `ORCHESTRATOR_*` and `DATABASE_URL`."""

    home: Path
    """Everything an instance keeps lies under it: `ORCHESTRATOR_HOME`, default `~/.orchestrator`."""
    database_url: str | None
    """`DATABASE_URL`; without it the embedded Postgres under `home` is used."""
    artifact_url: str
    """`ORCHESTRATOR_ARTIFACT_URL`, an fsspec URL; default `file://<home>/artifacts`."""
    policy_url: str | None
    """`ORCHESTRATOR_POLICY_URL`: base URL of the policy server."""
    feedback_url: str | None
    """`ORCHESTRATOR_FEEDBACK_URL`: base URL of the feedback app."""
    admin_token: str | None
    """`ORCHESTRATOR_ADMIN_TOKEN`, or the content of the file `ORCHESTRATOR_ADMIN_TOKEN_FILE`; shared by policy
    server and stages."""
    device: str
    """`ORCHESTRATOR_DEVICE` for jobs: `auto`, `cpu` or `cuda`; default auto."""
    python: str | None
    """`ORCHESTRATOR_JOB_PYTHON`: interpreter that runs the jobs, for GPU machines with their own; default ours."""
    gate: str | None
    """`ORCHESTRATOR_GATE`: digest, or its beginning, of the detector of far requests that the policy server asks; none
    where not set."""
    gate_action: GateAction
    """`ORCHESTRATOR_GATE_ACTION`: what becomes of a far request, `log`, `flag` or `refuse`; default log."""
    jobs_at_once: int
    """`ORCHESTRATOR_JOBS_AT_ONCE`: jobs that may run at the same time; 1, so that a GPU has one job, else as
    many as the cores allow."""

    @classmethod
    def from_env(cls, *, find_instance: bool = True) -> Settings:
        """Read the environment; where it names no database, the instance that runs on the home is asked.

        A command that starts an instance of its own must not find another: `find_instance=False`.

        Raises:
            ConfigError: a variable is set to something unusable; the message names variable and value.
        """
        env = os.environ
        home = Path(env.get("ORCHESTRATOR_HOME") or running_instance.default_home()).expanduser().absolute()
        device = env.get("ORCHESTRATOR_DEVICE", "auto")
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"ORCHESTRATOR_DEVICE is {device!r}; expected auto, cpu or cuda.")
        database_url = env.get("DATABASE_URL") or None
        if database_url is not None:
            database_url = normalised_database_url(database_url)
        gate = env.get("ORCHESTRATOR_GATE") or None
        if gate is not None and not DIGEST.fullmatch(gate):
            raise ConfigError(
                f"ORCHESTRATOR_GATE is {gate!r}; expected the digest of a detector, sha256:... "
                "`orchestrator ood list` shows those there are."
            )
        gate_action = env.get("ORCHESTRATOR_GATE_ACTION") or "log"
        if gate_action not in get_args(GateAction):
            raise ConfigError(f"ORCHESTRATOR_GATE_ACTION is {gate_action!r}; expected log, flag or refuse.")
        jobs_at_once = env.get("ORCHESTRATOR_JOBS_AT_ONCE", "1")
        if not jobs_at_once.isdecimal() or int(jobs_at_once) < 1:
            raise ConfigError(f"ORCHESTRATOR_JOBS_AT_ONCE is {jobs_at_once!r}; expected a whole number from 1.")
        # A command in another terminal speaks to the instance that runs on the home, unless told of a database.
        running = running_instance.running(home) if find_instance and database_url is None else None
        if running is not None:
            database_url = normalised_database_url(running.database_url)
        token = env.get("ORCHESTRATOR_ADMIN_TOKEN") or (running.admin_token if running else None)
        token_file = env.get("ORCHESTRATOR_ADMIN_TOKEN_FILE")
        if token is None and token_file:
            try:
                token = Path(token_file).read_text().strip()
            except OSError as error:
                raise ConfigError(f"ORCHESTRATOR_ADMIN_TOKEN_FILE names {token_file}: {error.strerror}.") from None
        return cls(
            home=home,
            database_url=database_url,
            artifact_url=env.get("ORCHESTRATOR_ARTIFACT_URL") or f"file://{home / 'artifacts'}",
            policy_url=_url(env.get("ORCHESTRATOR_POLICY_URL") or (running.policy_url if running else None)),
            feedback_url=_url(env.get("ORCHESTRATOR_FEEDBACK_URL") or (running.feedback_url if running else None)),
            admin_token=token,
            device=device,
            python=env.get("ORCHESTRATOR_JOB_PYTHON") or None,
            gate=gate,
            gate_action=cast(GateAction, gate_action),
            jobs_at_once=int(jobs_at_once),
        )

    def require_database_url(self) -> str:
        """The database URL, or an error that says how to get one."""
        if self.database_url is None:
            raise ConfigError(
                "No database: DATABASE_URL is not set and no instance runs under "
                f"{self.home} (ORCHESTRATOR_HOME).{running_instance.elsewhere(self.home)} Start one with `orchestrator "
                "up`, or set DATABASE_URL."
            )
        return self.database_url


def secret(variable: str) -> str | None:
    """A secret by the name of its environment variable, or the content of the file that `<variable>_FILE` names.

    None where neither is set. A file that can't be read counts as not set; the message names the variable alone.
    """
    if value := os.environ.get(variable):
        return value
    if file := os.environ.get(f"{variable}_FILE"):
        try:
            return Path(file).read_text().strip() or None
        except OSError:
            return None
    return None


def normalised_database_url(url: str) -> str:
    """The URL with SQLAlchemy's psycopg2 driver name; `postgres://` as hosting services write it is accepted.

    Raises:
        ConfigError: another database than Postgres.
    """
    for prefix in ("postgresql+psycopg2://", "postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg2://" + url.removeprefix(prefix)
    raise ConfigError(f"DATABASE_URL begins with {url.split(':')[0]!r}; expected postgresql://. Only Postgres works.")


def _url(value: str | None) -> str | None:
    return value.rstrip("/") if value else None


@cache
def code_revision() -> str | None:
    """The revision of this code: of the git checkout it runs from, or `ORCHESTRATOR_REVISION` in an image."""
    named = os.environ.get("ORCHESTRATOR_REVISION")
    if named or not (PROJECT_ROOT / ".git").exists():
        return named
    run = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or None


def flow_run_id() -> str | None:
    """The Prefect flow run in whose process the stage runs; Prefect sets it for its workers' children."""
    return os.environ.get("PREFECT__FLOW_RUN_ID")
