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

from models.runtime.training_choices import Precision
from orchestrator import running_instance
from orchestrator.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# A wheel has them inside this package, a clone beside it.
_PACKAGED = Path(__file__).resolve().parent / "examples"
EXAMPLES = _PACKAGED if _PACKAGED.is_dir() else PROJECT_ROOT / "examples"

# Names that a variable had before, and those that it has now.
RENAMED = {
    "ORCHESTRATOR_GATE": "ORCHESTRATOR_DETECTOR",
    "ORCHESTRATOR_GATE_ACTION": "ORCHESTRATOR_DETECTOR_ACTION",
}

DetectorAction = Literal["log", "flag", "refuse"]
"""What becomes of a request that is far from what the policy was trained to answer."""
DIGEST = re.compile(r"(sha256:)?[0-9a-f]{6,64}")
"""A digest, or its beginning."""


@dataclass(frozen=True)
class Variable:
    """One variable of the environment, stated once: docs/reference/environment.md is made from it."""

    name: str
    meaning: str
    readers: str
    """Which processes look at it."""
    default: str | None = None
    """What holds where it is unset or empty; None: nothing."""
    choices: tuple[str, ...] = ()
    unit: str = ""
    raised: str = ""
    """What a higher number does."""
    default_in_words: str = ""
    """Where the default is no fixed text."""


ALL = "every command and service"
PREFECT = "what speaks to Prefect"
WORK = "worker, and each job"
TRYING = "tests and benchmarks"
VARIABLES: dict[str, tuple[Variable, ...]] = {
    "Where the instance is": (
        Variable(
            "ORCHESTRATOR_HOME",
            "Everything that an instance keeps lies under it: database, artifacts, logs, secrets.",
            ALL,
            default_in_words="`~/.orchestrator`",
        ),
        Variable(
            "DATABASE_URL",
            "A Postgres of your own, `postgresql://…`. Without it the embedded one under the home is used.",
            ALL,
            default_in_words="that of the instance that runs on the home",
        ),
        Variable(
            "ORCHESTRATOR_ARTIFACT_URL",
            "The artifact store, an fsspec URL: `file:///…`, or `s3://…` with the extra `s3`. All machines name the "
            "same.",
            ALL,
            default_in_words="`file://$ORCHESTRATOR_HOME/artifacts`",
        ),
        Variable(
            "ORCHESTRATOR_POLICY_URL",
            "Base URL of the policy server.",
            "feedback app, stages, commands",
            default_in_words="that of the instance that runs on the home",
        ),
        Variable(
            "ORCHESTRATOR_FEEDBACK_URL",
            "Where people reach the feedback app and its desk: every link that is shown to them begins with it, in "
            "reports, the Prefect UI and invitations. Behind a proxy, or in containers, the address outside.",
            "what shows links",
            default_in_words="that of the instance that runs on the home",
        ),
        Variable(
            "PREFECT_API_URL",
            "The Prefect server, ending in `/api`. Prefect's own variable.",
            PREFECT,
            default_in_words="that of the instance that runs on the home",
        ),
    ),
    "Secrets": (
        Variable(
            "ORCHESTRATOR_ADMIN_TOKEN",
            "Shared by stages and policy server. One signs in at the desk by it, as `admin`, or by an operator's own "
            "token.",
            "policy server, feedback app, stages, commands",
            default_in_words="made by `orchestrator up`, in `admin-token` under the home",
        ),
        Variable(
            "ORCHESTRATOR_ADMIN_TOKEN_FILE",
            "A file that holds the token, where ORCHESTRATOR_ADMIN_TOKEN is not set.",
            "policy server, feedback app, stages, commands",
        ),
        Variable(
            "ORCHESTRATOR_ENGINE_KEY",
            "API key of the outside engine that `serve-policy --engine` names. Keys of outside contestants are in "
            "variables that you name (`orchestrator contestant`). Each of them may be in a file that a variable of "
            "the same name with `_FILE` after it names.",
            "policy server",
        ),
        Variable(
            "ORCHESTRATOR_ENGINE_KEY_FILE",
            "A file that holds that key, where ORCHESTRATOR_ENGINE_KEY is not set.",
            "policy server",
        ),
    ),
    "Who is told": (
        Variable(
            "ORCHESTRATOR_NOTIFY",
            "Whom the Prefect server tells of runs that failed, crashed, are blocked, wait for approval, were refused "
            "or skipped, and of what a person put live: Apprise URLs separated by blanks (`mailto://…`, `slack://…`, "
            "`json://…`). Read by `orchestrator register` and `up`; unset leaves what an earlier one wrote, `nobody` "
            "removes it.",
            "register, up",
        ),
        Variable(
            "ORCHESTRATOR_NOTIFY_FILE", "A file that holds them, where ORCHESTRATOR_NOTIFY is not set.", "register, up"
        ),
    ),
    "How work is done": (
        Variable(
            "ORCHESTRATOR_DEVICE",
            "What jobs and the policy server compute on. `auto`: a GPU where there is one; `cuda`: an error without "
            "one.",
            "worker, policy server",
            default="auto",
            choices=("auto", "cpu", "cuda"),
        ),
        Variable(
            "ORCHESTRATOR_JOBS_AT_ONCE",
            "Jobs that may run at the same time on a worker: evaluations, and the initial policy's beside PPO. On a "
            "GPU leave it at 1, so that each job has it for itself.",
            "worker",
            default="1",
            unit="jobs",
            raised="evaluations run side by side, each with its own memory and threads",
        ),
        Variable(
            "ORCHESTRATOR_MEMORY_CHECK",
            "`off`: a job is started also where the memory that it will need is not free (`orchestrator doctor`).",
            "stages",
            default="on",
            choices=("on", "off"),
        ),
        Variable(
            "ORCHESTRATOR_JOB_PYTHON",
            "Interpreter that runs the jobs, where the GPU machine has a torch of its own.",
            "worker",
            default_in_words="that of the worker",
        ),
        Variable(
            "ORCHESTRATOR_DETECTOR",
            "Digest, or its beginning, of the detector of far requests that the policy server asks, as `serve-policy "
            "--detector` says it; `orchestrator ood list` shows those there are. None is asked where not set.",
            "policy server",
        ),
        Variable(
            "ORCHESTRATOR_DETECTOR_ACTION",
            "What becomes of a far request: it is logged, answered with a flag, or refused.",
            "policy server",
            default="log",
            choices=get_args(DetectorAction),
        ),
        Variable(
            "ORCHESTRATOR_SERVING_PRECISION",
            "What the policy server computes replies in, as `serve-policy --precision` says. Raters are shown policies "
            "in it, so that it should be the one that they were judged in (`evaluation.precision`).",
            "policy server",
            default="float32",
            choices=get_args(Precision),
        ),
        Variable(
            "ORCHESTRATOR_REVISION",
            "Revision of the code, which is stored on artifacts and cycles; set in images, which have no git checkout.",
            "stages",
            default_in_words="`git describe` of the checkout, or none",
        ),
    ),
    "Set by us for Prefect": (
        Variable("PREFECT_HOME", "Prefect's own files; `prefect/` under the home, and never the user's.", PREFECT),
        Variable(
            "PREFECT_SERVER_UI_API_URL", "`/api`, so that the UI calls the port that it came from.", "Prefect server"
        ),
        Variable(
            "PREFECT_UI_URL",
            "Where people reach the Prefect UI: links to runs, in what people are told, begin with it.",
            "Prefect server",
            default_in_words="`PREFECT_API_URL` without `/api`",
        ),
        Variable("PREFECT_SERVER_ANALYTICS_ENABLED", "`false`: nothing is sent to Prefect's makers.", "Prefect server"),
        Variable("DO_NOT_TRACK", "`1`: the same.", PREFECT),
        Variable("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "`false`: no advertisements.", "Prefect server"),
        Variable("PREFECT_SERVER_UI_V2_ENABLED", "`false`: the second UI calls an outside host.", "Prefect server"),
        Variable(
            "PREFECT_CLIENT_MAX_RETRIES",
            "Attempts of a call to the Prefect server; `8` here.",
            PREFECT,
            unit="attempts",
            raised="a busy server is borne for longer",
        ),
        Variable(
            "PREFECT_WORKER_QUERY_SECONDS",
            "How often a worker asks for runs; `1` here.",
            "worker",
            unit="seconds",
            raised="runs begin later, and the server has less to do",
        ),
        Variable(
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
            "How often a flow gives a sign of life; `30` here, the shortest that Prefect allows.",
            "worker, flows",
            unit="seconds",
            raised="a run whose worker died is noticed later",
        ),
        Variable(
            "PREFECT__FLOW_RUN_ID", "The flow run of a process; Prefect sets it for its workers' children.", "stages"
        ),
        Variable(
            "ORCHESTRATOR_WORKER_PID",
            "Process id of the worker, by which a flow ends when its worker has died. The worker sets it.",
            "flows",
        ),
    ),
    "Set by us for jobs and services": (
        Variable(
            "HF_HUB_OFFLINE",
            "`1`: a job or the policy server gets folders and never asks a hub. Set it yourself where stages shall "
            "take models from the hub's local cache alone.",
            "jobs, policy server; stages read yours",
        ),
        Variable("TOKENIZERS_PARALLELISM", "`false`: a job has the threads that its section says.", "jobs"),
        Variable(
            "OMP_NUM_THREADS",
            "Threads of a job: the key `threads` of its section.",
            "jobs",
            unit="threads",
            raised="as `threads`",
        ),
        Variable(
            "OMP_WAIT_POLICY",
            "How waiting threads wait; sleeping leaves the processor to others.",
            "jobs",
            default="PASSIVE",
        ),
        Variable("PYTHONPATH", "Begins with the folder of the program, so that `models` is found from anywhere.", WORK),
        Variable("PYTHONUNBUFFERED", "`1`: logs are written as they come.", "jobs, services"),
        Variable(
            "PATH", "Begins with the folder of the interpreter, so that its programs are found.", "services, worker"
        ),
        Variable("LC_ALL", "`C`: messages of the embedded Postgres are in English.", "embedded Postgres"),
    ),
    "The `.env` file beside docker-compose.yml": (
        Variable("POSTGRES_PASSWORD", "Password of the Postgres container; must be given.", "containers"),
        Variable("BIND", "Address on which the pages are offered.", "containers", default="127.0.0.1"),
        Variable("CONFIG", "File of examples/ that the weekly cycle trains.", "containers", default="hh.toml"),
        Variable(
            "TORCH_INDEX",
            "Package index of the torch build that fits the GPU's driver.",
            "building of the image",
            default_in_words="that of the CPU build",
        ),
    ),
    "Tests, benchmarks and pictures": (
        Variable(
            "ORCHESTRATOR_DATA",
            "Folder of the real comparisons; what needs it is skipped where there is none. The examples name it.",
            TRYING,
            default_in_words="`shared/data` beside the checkout; for containers `./data`",
        ),
        Variable(
            "ORCHESTRATOR_BROWSER",
            "Chromium, by which pages are tested and pictures taken.",
            "tests, benchmarks, docs/screenshots.py, docs/tour_screenshots.py",
            default_in_words="`chromium` or `google-chrome` of the path",
        ),
        Variable(
            "BENCH_PIP_ARGS",
            "Further arguments of pip, where a benchmark makes an environment to compare with.",
            "benchmarks",
        ),
        Variable(
            "XDG_CACHE_HOME",
            "Where a benchmark keeps that environment.",
            "benchmarks",
            default_in_words="`~/.cache`",
        ),
    ),
}
"""By heading, every variable that the product reads or sets."""
BY_NAME = {variable.name: variable for group in VARIABLES.values() for variable in group}


def read(name: str) -> str | None:
    """The value of a variable of the table; its default where it is unset or empty.

    Raises:
        ConfigError: it has another value than those there are.
    """
    variable = BY_NAME[name]
    value = os.environ.get(name) or variable.default
    if variable.choices and value not in variable.choices:
        *first, last = variable.choices
        raise ConfigError(f"{name} is {value!r}; expected {', '.join(first)} or {last}.")
    return value


@dataclass(frozen=True)
class Settings:
    """The instance's home and the addresses of its services, from the environment; `VARIABLES` says what each means."""

    home: Path
    """`ORCHESTRATOR_HOME`, an absolute path."""
    database_url: str | None
    """`DATABASE_URL`, or that of the instance that runs on the home, with SQLAlchemy's driver name."""
    artifact_url: str
    """`ORCHESTRATOR_ARTIFACT_URL`."""
    policy_url: str | None
    """`ORCHESTRATOR_POLICY_URL`, or that of the instance that runs on the home, without a slash at its end."""
    feedback_url: str | None
    """`ORCHESTRATOR_FEEDBACK_URL`, in the same way."""
    admin_token: str | None
    """`ORCHESTRATOR_ADMIN_TOKEN`, or the content of the file `ORCHESTRATOR_ADMIN_TOKEN_FILE`."""
    device: str
    """`ORCHESTRATOR_DEVICE`."""
    python: str | None
    """`ORCHESTRATOR_JOB_PYTHON`."""
    detector: str | None
    """`ORCHESTRATOR_DETECTOR`."""
    detector_action: DetectorAction
    """`ORCHESTRATOR_DETECTOR_ACTION`."""
    serving_precision: Precision
    """`ORCHESTRATOR_SERVING_PRECISION`."""
    jobs_at_once: int
    """`ORCHESTRATOR_JOBS_AT_ONCE`."""

    @classmethod
    def from_env(cls, *, find_instance: bool = True) -> Settings:
        """Read the environment; where it names no database, the instance that runs on the home is asked.

        A command that starts an instance of its own must not find another: `find_instance=False`.

        Raises:
            ConfigError: a variable is set to something unusable; the message names variable and value.
        """
        for old, new in RENAMED.items():
            if os.environ.get(old):
                raise ConfigError(f"{old} is now called {new}; set that instead, to {os.environ[old]!r}.")
        home = Path(read("ORCHESTRATOR_HOME") or running_instance.default_home()).expanduser().absolute()
        device = str(read("ORCHESTRATOR_DEVICE"))
        database_url = read("DATABASE_URL")
        if database_url is not None:
            database_url = normalised_database_url(database_url)
        detector = read("ORCHESTRATOR_DETECTOR")
        if detector is not None and not DIGEST.fullmatch(detector):
            raise ConfigError(
                f"ORCHESTRATOR_DETECTOR is {detector!r}; expected the digest of a detector, sha256:... "
                "`orchestrator ood list` shows those there are."
            )
        detector_action = read("ORCHESTRATOR_DETECTOR_ACTION")
        jobs_at_once = str(read("ORCHESTRATOR_JOBS_AT_ONCE"))
        if not jobs_at_once.isdecimal() or int(jobs_at_once) < 1:
            raise ConfigError(f"ORCHESTRATOR_JOBS_AT_ONCE is {jobs_at_once!r}; expected a whole number from 1.")
        # A command in another terminal speaks to the instance that runs on the home, unless told of a database.
        running = running_instance.running(home) if find_instance and database_url is None else None
        if running is not None:
            database_url = normalised_database_url(running.database_url)
        token = read("ORCHESTRATOR_ADMIN_TOKEN") or (running.admin_token if running else None)
        token_file = read("ORCHESTRATOR_ADMIN_TOKEN_FILE")
        if token is None and token_file:
            try:
                token = Path(token_file).read_text().strip()
            except OSError as error:
                raise ConfigError(f"ORCHESTRATOR_ADMIN_TOKEN_FILE names {token_file}: {error.strerror}.") from None
        return cls(
            home=home,
            database_url=database_url,
            artifact_url=read("ORCHESTRATOR_ARTIFACT_URL") or f"file://{home / 'artifacts'}",
            policy_url=_url(read("ORCHESTRATOR_POLICY_URL") or (running.policy_url if running else None)),
            feedback_url=_url(read("ORCHESTRATOR_FEEDBACK_URL") or (running.feedback_url if running else None)),
            admin_token=token,
            device=device,
            python=read("ORCHESTRATOR_JOB_PYTHON"),
            detector=detector,
            detector_action=cast(DetectorAction, detector_action),
            serving_precision=cast(Precision, read("ORCHESTRATOR_SERVING_PRECISION")),
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
    named = read("ORCHESTRATOR_REVISION")
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
    return read("PREFECT__FLOW_RUN_ID")
