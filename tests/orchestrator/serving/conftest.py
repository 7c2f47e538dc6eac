"""Tiny real policies in a real artifact store, and the policy server over them under a real uvicorn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from orchestrator.serving.app import create_app
from orchestrator.serving.server import PolicyServerConfig
from orchestrator.serving.snapshots import SnapshotLimits
from orchestrator.store.artifacts import ArtifactStore
from tests.orchestrator.serving.tiny_policies import ADMIN_TOKEN, Policies, Serve, Served, put_live, write_policy
from tests.running import add_artifact, running


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    root = tmp_path_factory.mktemp("store")
    store = ArtifactStore(f"file://{root / 'artifacts'}", root / "cache")
    digests = tuple(
        store.publish(write_policy(tmp_path_factory.mktemp(f"policy-{seed}"), seed)).digest for seed in range(3)
    )
    return Policies(store, root / "cache", digests)


@pytest.fixture
def database(database_url: str, policies: Policies) -> Iterator[Callable[[], Session]]:
    """Opens sessions on the test's database, in which the policies are registered and none is deployed."""
    engine = create_engine(database_url)
    with Session(engine) as session, session.begin():
        for digest in policies.digests:
            add_artifact(session, digest, digest=digest)
    yield lambda: Session(engine, expire_on_commit=False)
    engine.dispose()


@pytest.fixture
def live(database: Callable[[], Session], policies: Policies) -> str:
    """The first policy, deployed."""
    put_live(database, policies.digests[0])
    return policies.digests[0]


@pytest.fixture
def serve(database_url: str, policies: Policies) -> Serve:
    """Starts policy servers on the test's database; fields of SnapshotLimits or of the configuration may be given."""

    @contextmanager
    def start(**fields: Any) -> Iterator[Served]:
        names = (
            "max_slots",
            "max_context",
            "max_snapshots",
            "idle_s",
            "follow_s",
            "engines",
            "engine_key",
            "precision",
        )
        limits = {name: fields.pop(name) for name in names if name in fields}
        config = PolicyServerConfig(
            database_url,
            policies.store.url,
            policies.cache,
            SnapshotLimits(torch.device("cpu"), **({"follow_s": 0.05} | limits)),
            admin_token=ADMIN_TOKEN,
            **fields,
        )
        app = create_app(config)
        with running(app) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield Served(url, app, client)

    return start


@pytest.fixture
def served(serve: Serve, live: str) -> Iterator[Served]:
    """A policy server that has loaded the live policy."""
    with serve() as server:
        server.wait_for(lambda health: health["live"] == live)
        yield server
