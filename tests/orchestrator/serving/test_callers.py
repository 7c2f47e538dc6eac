"""Who may call what on the policy server: every route and each kind of caller; keys, their limits and their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from orchestrator import cli
from orchestrator.commands.running.serve_policy import is_loopback
from orchestrator.serving import callers, keys
from tests.orchestrator.serving.tiny_policies import ADMIN_TOKEN, Serve, Served, code_of

Database = Callable[[], Session]
CHAT = {"model": "policy-live", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
NOBODY, KEY, ENDED, RATER, OWN, ADMIN = "nobody", "a key", "an ended key", "a rater's token", "our own", "the admin"

# Statuses in the order: nobody, a key, an ended key, a rater's token, the feedback app's own key, the admin token.
OPEN = (200, 200, 200, 200, 200, 200)
PROGRAMS = (401, 200, 401, 401, 200, 401)
ADMINS = (401, 401, 401, 401, 401, 200)
TABLE: list[tuple[str, str, dict[str, Any] | None, tuple[int, ...]]] = [
    ("GET", "/", None, OPEN),
    ("GET", "/health", None, OPEN),
    ("GET", "/metrics", None, OPEN),
    ("GET", "/v1/models", None, PROGRAMS),
    ("GET", "/v1/models/{name}", None, PROGRAMS),
    ("POST", "/v1/chat/completions", CHAT, PROGRAMS),
    ("POST", "/admin/load", {"digest": "live"}, ADMINS),
    ("POST", "/admin/refresh", None, ADMINS),
    # The live one stays.
    ("POST", "/admin/unload", {"digest": "live"}, (401, 401, 401, 401, 401, 409)),
]


@pytest.fixture
def add_key(database: Database) -> Callable[..., str]:
    def add(name: str, per_minute: int | None = None) -> str:
        with database() as session, session.begin():
            return keys.create_key(session, name, per_minute)

    return add


@pytest.fixture
def guarded(serve: Serve, live: str) -> Iterator[Served]:
    """A policy server that asks for keys."""
    with serve(require_keys=True) as server:
        server.wait_for(lambda health: health["live"] == live)
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_answers_each_caller_as_the_table_says(
    guarded: Served, live: str, database: Database, add_key: Callable[..., str]
) -> None:
    from orchestrator.people.raters import create_rater

    routes = {
        (method, route.path) for route in guarded.app.routes if isinstance(route, APIRoute) for method in route.methods
    }
    assert {(method, path) for method, path, _, _ in TABLE} == routes
    ended = add_key("ended")
    with database() as session, session.begin():
        keys.end_key(session, "ended")
        _, token = create_rater(session, "ann")
    callers_: dict[str, dict[str, str]] = {
        NOBODY: {},
        KEY: bearer(add_key("good")),
        ENDED: bearer(ended),
        RATER: bearer(token),
        OWN: bearer(keys.service_key(ADMIN_TOKEN)),
        ADMIN: {"X-Admin-Token": ADMIN_TOKEN, **bearer(ADMIN_TOKEN)},
    }
    answers, expected = {}, {}
    for index, (caller, headers) in enumerate(callers_.items()):
        for method, path, body, statuses in TABLE:
            given = {"digest": live} if body == {"digest": "live"} else body
            answer = guarded.client.request(method, path.format(name="policy-live"), json=given, headers=headers)
            answers[f"{caller}: {path}"] = answer.status_code
            expected[f"{caller}: {path}"] = statuses[index]
    assert answers == expected


def test_what_is_wrong_is_said_and_the_key_is_not_repeated(guarded: Served) -> None:
    assert code_of(guarded.chat()) == (401, "no_api_key")
    for header in ("Basic x", "Bearer", "bearer"):
        refused = guarded.client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": header})
        assert code_of(refused) == (401, "no_api_key")
    refused = guarded.client.post("/v1/chat/completions", json=CHAT, headers=bearer("a-guess"))
    assert code_of(refused) == (401, "unknown_api_key")
    assert "a-guess" not in refused.text


def test_a_key_has_so_many_requests_a_minute(guarded: Served, add_key: Callable[..., str]) -> None:
    limited, other = bearer(add_key("limited", 2)), bearer(add_key("other"))
    answers = [guarded.client.get("/v1/models", headers=limited) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert guarded.client.get("/v1/models", headers=other).status_code == 200


def test_an_ended_key_opens_nothing_within_seconds(
    guarded: Served, add_key: Callable[..., str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = bearer(add_key("program"))
    assert guarded.client.get("/v1/models", headers=headers).status_code == 200
    with database() as session, session.begin():
        keys.end_key(session, "program")
    monkeypatch.setattr(callers, "_REMEMBERED_S", 0.0)
    assert guarded.client.get("/v1/models", headers=headers).status_code == 401


def test_the_openai_client_works_with_a_key(guarded: Served, live: str, add_key: Callable[..., str]) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=add_key("program"), max_retries=0)
    answer = client.chat.completions.create(model="policy-live", messages=[{"role": "user", "content": "hi"}])
    assert answer.system_fingerprint == live
    with pytest.raises(openai.AuthenticationError, match="opens nothing here"):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="no", max_retries=0).models.list()


def test_without_keys_required_whoever_reaches_it_may_ask(served: Served) -> None:
    assert served.chat().status_code == 200
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5


def test_keys_are_added_listed_and_ended_by_command(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert cli.main(["key", "add", "nightly job", "--per-minute", "30"]) == 0
    key = capsys.readouterr().out.split()[1]
    assert key.startswith("orch-")
    assert cli.main(["key", "end", "nightly job"]) == 0
    assert cli.main(["key", "end", "nightly job"]) == 0
    capsys.readouterr()
    assert cli.main(["key", "list"]) == 0
    listed = capsys.readouterr().out
    assert "nightly job" in listed
    assert key not in listed
    assert cli.main(["key", "add", "nightly job"]) == 2
    assert cli.main(["key", "add", " "]) == 2
    assert cli.main(["key", "add", "x", "--per-minute", "0"]) == 2
    assert cli.main(["key", "end", "nobody"]) == 2
    assert "There is no key 'nobody'" in capsys.readouterr().err


Start = Callable[..., AbstractContextManager[Served]]


def test_a_policy_that_is_not_what_was_saved_does_not_become_live(
    served: Served, live: str, policies: Any, database: Database, tmp_path: Any
) -> None:
    import json
    import shutil

    from tests.orchestrator.serving.tiny_policies import put_live
    from tests.running import add_artifact

    folder = tmp_path / "other"
    shutil.copytree(policies.store.fetch(policies.digests[1]), folder)
    told = json.loads((folder / "fingerprint.json").read_text())
    told["logprobs"][0] -= 0.2
    (folder / "fingerprint.json").chmod(0o644)
    (folder / "fingerprint.json").write_text(json.dumps(told))
    digest = policies.store.publish(folder).digest
    with database() as session, session.begin():
        add_artifact(session, digest, digest=digest)
    refused = served.admin("load", digest)
    assert code_of(refused) == (503, "snapshot_unusable")
    assert "is not what was saved: token 0" in refused.text
    put_live(database, digest)
    health = served.wait_for(lambda health: "not what was saved" in (health["message"] or ""))
    assert health["live"] == live
    assert health["snapshots"][0]["fingerprint"] == "proven"
    assert served.chat().json()["system_fingerprint"] == live
