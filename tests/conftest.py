"""Fixtures of every test: a real Postgres for the whole run, a fresh database or a rolled-back session per test.

`database_url` gives a database of its own, where commits are allowed; `session` is cheaper and rolls back.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.paths import PROJECT_ROOT
from tests.skipped import (  # noqa: F401 - pytest finds its hooks by their names here
    pytest_collectreport,
    pytest_deselected,
    pytest_runtest_logreport,
)
from tests.warm_jobs import WarmJobs, warm_jobs

if TYPE_CHECKING:
    # The GPU machine runs the tests of models/ and has neither SQLAlchemy nor Postgres: imported where used.
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from orchestrator.instance.postgres import EmbeddedPostgres
    from orchestrator.instance.up import Instance

# Read when torch, tokenizers and transformers are first imported, which happens in the tests' modules.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A test belongs to no instance, whatever the shell that started it is set to.
for _name in [name for name in os.environ if name.startswith("ORCHESTRATOR_") and name != "ORCHESTRATOR_DATA"]:
    del os.environ[_name]
os.environ.pop("DATABASE_URL", None)

_numbers = itertools.count(1)

# A crash of the machine may lose the tests' data: they are quicker without waiting for the disk.
QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "32MB"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two OpenMP threads on a busy machine are many times slower than one."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One server for the whole run."""
    from orchestrator.instance.postgres import EmbeddedPostgres

    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings=QUICK) as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: EmbeddedPostgres) -> str:
    """Name of a migrated database that others are cloned from; nobody stays connected to it."""
    from db.migrate import upgrade

    _execute(postgres, "create database template_test")
    upgrade(postgres.url_of("template_test"))
    return "template_test"


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """URL of a fresh migrated database of this test's own; what it commits is gone afterwards."""
    name = f"test_{next(_numbers)}"
    _execute(postgres, f"create database {name} template {template_database} strategy file_copy")
    yield postgres.url_of(name)
    _execute(postgres, f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def _shared_database_url(postgres: EmbeddedPostgres, template_database: str) -> str:
    _execute(postgres, f"create database test_shared template {template_database} strategy file_copy")
    return postgres.url_of("test_shared")


@pytest.fixture
def session(_shared_database_url: str) -> Iterator[Session]:
    """A session whose work is rolled back after the test; its commits are savepoints."""
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    engine = create_engine(_shared_database_url)
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as open_session:
            yield open_session
        outer.rollback()
    engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database of the test's own."""
    from db.session import make_engine

    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data sets, `ORCHESTRATOR_DATA`; the test is skipped where there is none."""
    folder = Path(os.environ.get("ORCHESTRATOR_DATA") or PROJECT_ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set ORCHESTRATOR_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The address of an S3 server of the run's own, which keeps its objects in memory."""
    # Here because these imports take a second that most tests need not wait for.
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    # Port 0: the server that listens chooses it.
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    # fsspec keeps the file system that was made for this server.
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket on the run's S3 server, to which the environment leads while the test runs."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"test-{uuid.uuid4().hex}"
    S3FileSystem().mkdir(name)
    return name


@pytest.fixture(scope="session")
def job_server() -> Iterator[WarmJobs]:
    """The process from which quick jobs are forked."""
    # A folder of its own: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="jobs-") as folder, warm_jobs(Path(folder)) as jobs:
        yield jobs


@pytest.fixture
def quick_jobs(job_server: WarmJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test's own process runs as jobs is forked from one that has imported torch already (warm_jobs.py)."""
    monkeypatch.setattr("orchestrator.instance.training_jobs._run", job_server.run)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `ORCHESTRATOR_HOME`, set in the environment."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(folder))
    return folder


def _execute(postgres: EmbeddedPostgres, statement: str) -> None:
    connection = postgres.connect("postgres")
    try:
        connection.cursor().execute(statement)
    finally:
        connection.close()


NOWHERE = {"ALL_PROXY": "socks4://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "fd00::/8"}


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One whole instance for the run: Postgres, Prefect server, both workers, policy server, feedback app.

    Tests of it must leave it as they found it: running, with no open cycle.
    """
    from orchestrator.instance.up import Instance

    started = Instance(tmp_path_factory.mktemp("an instance"))
    with pytest.MonkeyPatch.context() as patch:
        # Behind proxies that lead nowhere and that httpx can't use: every process of it, Prefect's too.
        for name, value in NOWHERE.items():
            patch.setenv(name, value)
        started.start()
    try:
        yield started
    finally:
        started.stop()
