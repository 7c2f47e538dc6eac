"""Promotion, loading and letting go of snapshots while requests run."""

from __future__ import annotations

import json
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.backbone.precision import DTYPES
from models.runtime.training_choices import Precision
from models.sampling.engine import SamplingParams
from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import end_pairing, open_pairing
from orchestrator.store.artifacts import ArtifactStore
from tests.orchestrator.serving.tiny_policies import (
    ADMIN_TOKEN,
    CONTEXT,
    HELLO,
    Policies,
    Serve,
    Served,
    code_of,
    put_live,
)

Database = Callable[[], Session]


def test_swap_under_load_fails_and_mixes_nothing(served: Served, policies: Policies, database: Database) -> None:
    first, second = policies.digests[:2]
    seeds = range(6)
    expected = {
        (digest, seed): policies.completion(digest, HELLO, SamplingParams(40, seed=seed))[0]
        for digest in (first, second)
        for seed in seeds
    }
    seen: Counter[str] = Counter()
    problems: list[str] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=served.url, timeout=30) as client:
            while not stop.is_set():
                seed = number % len(seeds)
                body = {"model": "policy-live", "messages": HELLO, "max_tokens": 40, "seed": seed}
                response = client.post("/v1/chat/completions", json={**body, "stream": bool(number % 2)})
                digest, text = _read(response)
                if response.status_code != 200 or text != expected.get((digest, seed)):
                    problems.append(f"{response.status_code} {digest} {seed} {response.text[:200]}")
                seen[digest] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        before = seen.total()
        put_live(database, (second, first)[turn % 2])
        assert served.refresh().json() == {"live": (second, first)[turn % 2]}
        _wait_until(lambda before=before: seen.total() >= before + 16 or bool(problems))
    stop.set()
    for thread in threads:
        thread.join(30)
    assert problems == []
    assert min(seen[first], seen[second]) >= 20


def test_a_running_request_ends_on_the_weights_it_began_with(
    serve: Serve, policies: Policies, live: str, database: Database
) -> None:
    second = policies.digests[1]
    # A seed whose reply is long: random weights end a reply at any time.
    replies = (policies.completion(live, HELLO, SamplingParams(CONTEXT - 60, seed=seed)) for seed in range(100))
    seed, expected = next((seed, text) for seed, (text, tokens) in enumerate(replies) if tokens > 200)
    with serve(idle_s=0.0) as served:
        served.wait_for(lambda health: health["live"] == live)
        old = weakref.ref(served.app.state.server.snapshots.live.engine.model)
        # Slow enough that the promotion happens in the middle.
        _slow_down(served, 0.002)
        body = {"model": "policy-live", "messages": HELLO, "max_tokens": CONTEXT - 60, "seed": seed, "stream": True}
        with served.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            with httpx.Client(base_url=served.url, timeout=30) as other:
                admin = {"X-Admin-Token": ADMIN_TOKEN}
                put_live(database, second)
                assert other.post("/admin/refresh", headers=admin).json() == {"live": second}
                after = other.post(
                    "/v1/chat/completions", json={"model": "policy-live", "messages": HELLO, "max_tokens": 3}
                )
                assert after.json()["system_fingerprint"] == second
                assert old() is not None
            chunks = [json.loads(line[6:]) for line in [first, *lines] if line.startswith("data: {")]
        assert {chunk["system_fingerprint"] for chunk in chunks} == {live}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected
    # Many tokens came after the promotion.
    assert len(chunks) > 50


def test_old_weights_are_freed_once_drained(serve: Serve, policies: Policies, live: str, database: Database) -> None:
    second = policies.digests[1]
    with serve(idle_s=0.05) as served:
        served.wait_for(lambda health: health["live"] == live)
        assert served.chat().status_code == 200
        old = weakref.ref(served.app.state.server.snapshots.live.engine.model)
        put_live(database, second)
        assert served.refresh().status_code == 200
        _wait_until(lambda: old() is None)
        assert [one["digest"] for one in served.health()["snapshots"]] == [second]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replies_are_computed_in_the_format_that_is_named(serve: Serve, live: str, precision: Precision) -> None:
    with serve(precision=precision) as served:
        served.wait_for(lambda health: health["live"] == live)
        assert served.chat().status_code == 200
        snapshot = served.app.state.server.snapshots.live
        assert snapshot.engine._decoder.dtype == DTYPES[precision]
        # Rounding is no reason to take it for another policy.
        assert snapshot.proven


def test_the_database_says_what_is_held(serve: Serve, policies: Policies, database: Database) -> None:
    first, second, third = policies.digests
    with serve(idle_s=0.0) as served:
        health = served.wait_for(lambda health: health["message"] == "no policy is live")
        assert (health["status"], health["live"], health["snapshots"]) == ("waiting", None, [])
        assert code_of(served.chat()) == (503, "no_policy_live")
        put_live(database, first)
        served.wait_for(lambda health: health["live"] == first)
        with database() as session, session.begin():
            ids = {row.digest: row.id for row in session.scalars(select(t.Artifact))}
            pairing = open_pairing(
                session, "model_comparison", policy(session, ids[second]).id, policy(session, ids[third]).id
            )
        served.wait_for(lambda health: len(health["snapshots"]) == 3)
        with database() as session, session.begin():
            end_pairing(session, pairing.id)
        served.wait_for(lambda health: [one["digest"] for one in health["snapshots"]] == [first])
        put_live(database, third)
        health = served.wait_for(lambda health: [one["digest"] for one in health["snapshots"]] == [third])
        assert health["live"] == third
    with serve() as served:
        served.wait_for(lambda health: health["live"] == third)


def test_only_the_admin_loads_and_unloads(served: Served, policies: Policies, live: str) -> None:
    for action in ("load", "unload"):
        for headers in ({}, {"X-Admin-Token": ""}, {"X-Admin-Token": "guess"}, {"X-Admin-Token": "gu\xe9ss"}):
            body = json.dumps({"digest": policies.digests[1]})
            refused = served.client.post(
                f"/admin/{action}", content=body, headers=[(k.encode(), v.encode()) for k, v in headers.items()]
            )
            assert code_of(refused) == (401, "wrong_admin_token")
        assert code_of(served.admin(action, "sha256:" + "0" * 64)) == (404, "model_not_found")
    assert code_of(served.admin("unload", live)) == (409, "snapshot_in_use")
    assert served.admin("load", policies.digests[1]).json() == {"digest": policies.digests[1]}
    assert len(served.health()["snapshots"]) == 2
    assert served.admin("unload", policies.digests[1]).status_code == 200
    assert [one["digest"] for one in served.health()["snapshots"]] == [live]


def test_without_an_admin_token_nobody_is_admin(serve: Serve, live: str) -> None:
    with serve() as served:
        object.__setattr__(served.app.state.server.config, "admin_token", None)
        assert code_of(served.admin("unload", live)) == (403, "no_admin_token")


def test_a_tampered_snapshot_is_refused_and_the_live_one_stays(
    serve: Serve, policies: Policies, live: str, tmp_path: Path, database: Database
) -> None:
    second = policies.digests[1]
    store = ArtifactStore(f"file://{tmp_path / 'artifacts'}", tmp_path / "cache")
    for digest in (live, second):
        # A store may share files with what it publishes; the other tests' store must not be damaged with this one.
        copy = shutil.copytree(policies.store.fetch(digest), tmp_path / digest[7:], copy_function=shutil.copyfile)
        assert store.publish(Path(copy)).digest == digest
    weights = next(tmp_path.glob(f"artifacts/{second[7:]}/files/model.safetensors"))
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with serve() as served:
        served.app.state.server.snapshots._store = store
        served.wait_for(lambda health: health["live"] == live)
        refused = served.admin("load", second)
        assert code_of(refused) == (503, "snapshot_unusable")
        assert second in refused.json()["error"]["message"]
        assert "model.safetensors" in refused.json()["error"]["message"]
        # Also where the database says that it is live: whoever wrote that is told.
        put_live(database, second)
        refused = served.refresh()
        assert code_of(refused) == (503, "not_followed")
        assert "model.safetensors" in refused.json()["error"]["message"]
        assert served.chat().json()["system_fingerprint"] == live


def test_more_snapshots_than_fit_make_room_or_are_refused(
    serve: Serve, policies: Policies, live: str, database: Database
) -> None:
    _, second, third = policies.digests
    with serve(max_snapshots=2) as served:
        served.wait_for(lambda health: health["live"] == live)
        assert served.chat(second).status_code == 200
        assert served.chat(third).status_code == 200
        assert {one["digest"] for one in served.health()["snapshots"]} == {live, third}
        with database() as session, session.begin():
            ids = {row.digest: row.id for row in session.scalars(select(t.Artifact))}
            open_pairing(session, "model_comparison", policy(session, ids[live]).id, policy(session, ids[third]).id)
        served.wait_for(lambda health: all(one["wanted"] for one in health["snapshots"]))
        assert code_of(served.chat(second)) == (503, "too_many_snapshots")


def _read(response: httpx.Response) -> tuple[str, str]:
    """Snapshot and text of an answer, streamed or whole."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        answer = response.json()
        return answer["system_fingerprint"], answer["choices"][0]["message"]["content"]
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    (digest,) = {chunk["system_fingerprint"] for chunk in chunks}
    return digest, "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def _slow_down(served: Served, seconds: float) -> None:
    engine = served.app.state.server.snapshots.live.engine
    step = engine.step

    def slow() -> object:
        time.sleep(seconds)
        return step()

    engine.step = slow


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
