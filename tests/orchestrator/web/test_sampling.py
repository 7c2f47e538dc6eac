"""How the replies of a pair come about while things break: nothing is lost, nothing is written twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import open_pairing
from orchestrator.instance.postgres import EmbeddedPostgres
from orchestrator.web.app import FeedbackConfig, create_app
from tests.orchestrator.web.rating import ask, candidates, code_of, events, ok, pair_of
from tests.orchestrator.web.stand_in import StandIn, reply_of
from tests.running import add_artifact, running

Database = Callable[[], Session]


def texts_of(told: list[dict[str, Any]]) -> dict[str, str]:
    """What a reader has in front of them after these events."""
    texts = {"a": "", "b": ""}
    for event in told:
        texts[event["side"]] = "" if event.get("restart") else texts[event["side"]] + event.get("delta", "")
    return texts


def test_a_pair_is_written_before_its_first_token(
    rater: httpx.Client, database: Database, stand_in: StandIn, live: str
) -> None:
    _, message_id = ask(rater)
    stand_in.hold()
    asked = pair_of(rater, message_id, wait=False)
    assert not asked["a"]["complete"]
    rows = candidates(database, asked["pair_id"])
    assert [row.side for row in rows] == ["a", "b"]
    for row in rows:
        assert row.text is None
        assert row.snapshot_id is not None
        assert row.seed is not None
        assert row.sampling == {"max_tokens": 128, "temperature": 1.0, "top_p": 1.0}
    early = rater.post(f"/api/pairs/{asked['pair_id']}/comparison", json={"side": "a"})
    assert code_of(early) == (409, "pair_incomplete")
    with rater.stream("GET", f"/api/pairs/{asked['pair_id']}/stream") as response:
        stand_in.release()
        told = events(response)
    finished = rater.get(f"/api/pairs/{asked['pair_id']}").json()
    assert texts_of(told) == {"a": finished["a"]["text"], "b": finished["b"]["text"]}
    assert [event["side"] for event in told if event.get("complete")] == ["a", "b"]
    # The first word came before the rest did: the replies were streamed.
    assert len([event for event in told if "delta" in event]) >= 3
    rows = candidates(database, asked["pair_id"])
    assert [row.text for row in rows] == [reply_of(live, row.seed or 0, "hello") for row in rows]
    assert [row.truncated for row in rows] == [True, True]
    assert [row.reply_tokens for row in rows] == [4, 4]


def test_one_request_samples_both_replies_of_one_snapshot_and_two_those_of_two(
    rater: httpx.Client, database: Database, stand_in: StandIn
) -> None:
    _, message_id = ask(rater)
    pair_of(rater, message_id)
    assert [body["n"] for body in stand_in.asked] == [2]
    with database() as session, session.begin():
        one, two = add_artifact(session, "one"), add_artifact(session, "two")
        open_pairing(session, "model_comparison", policy(session, one.id).id, policy(session, two.id).id)
    _, message_id = ask(rater, "model_comparison")
    pair = pair_of(rater, message_id)
    assert [body["n"] for body in stand_in.asked[1:]] == [1, 1]
    assert {body["model"] for body in stand_in.asked[1:]} == {one.digest, two.digest}
    by_id = {one.id: one.digest, two.id: two.digest}
    for row in candidates(database, pair["pair_id"]):
        assert row.text == reply_of(by_id[row.snapshot_id or 0], row.seed or 0, "hello")
        # Neither contestant is the live one, so no deployment wrote these.
        assert row.deployment_id is None


def test_a_stream_that_breaks_off_is_asked_again_and_read_as_one(
    rater: httpx.Client, database: Database, stand_in: StandIn
) -> None:
    _, message_id = ask(rater)
    stand_in.break_offs = 2
    asked = pair_of(rater, message_id, wait=False)
    with rater.stream("GET", f"/api/pairs/{asked['pair_id']}/stream") as response:
        told = events(response)
    rows = candidates(database, asked["pair_id"])
    assert texts_of(told) == {"a": rows[0].text, "b": rows[1].text}
    assert not any(event.get("restart") for event in told)
    assert len(stand_in.asked) == 3
    assert len({(body["seed"], body["model"]) for body in stand_in.asked}) == 1


def test_a_policy_server_that_is_away_for_a_moment_is_waited_for(rater: httpx.Client, stand_in: StandIn) -> None:
    _, message_id = ask(rater)
    stand_in.refusals = [(503, "no_policy_live"), (500, "internal_error"), (404, "model_not_found")]
    pair = pair_of(rater, message_id)
    assert pair["a"]["complete"]
    assert len(stand_in.asked) == 4


def test_a_dialogue_that_is_too_long_says_so(rater: httpx.Client, stand_in: StandIn) -> None:
    _, message_id = ask(rater)
    stand_in.refusals = [(400, "context_length_exceeded")]
    refused = rater.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p1"})
    assert code_of(refused) == (422, "dialogue_too_long")
    # The pair is there all the same, and once the policies can answer it, it is completed.
    assert pair_of(rater, message_id)["a"]["complete"]


def test_a_reader_of_a_failing_stream_is_told(rater: httpx.Client, stand_in: StandIn) -> None:
    _, message_id = ask(rater)
    stand_in.refusals = [(400, "unusable_messages")] * 2
    asked = pair_of(rater, message_id, wait=False)
    with rater.stream("GET", f"/api/pairs/{asked['pair_id']}/stream") as response:
        told = events(response)
    assert told[-1].get("error", {}).get("code") == "not_answerable" or texts_of(told)["a"]


def test_replies_are_unavailable_after_the_time_limit_and_come_later(
    new_rater: Callable[[str], httpx.Client], config: FeedbackConfig, live: str, stand_in: StandIn, database: Database
) -> None:
    ann = new_rater("ann")
    with running(create_app(replace(config, sampling_timeout_s=0.3))) as url:
        ann.base_url = url
        _, message_id = ask(ann)
        stand_in.hold()
        refused = ann.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p1"})
        assert code_of(refused) == (503, "replies_unavailable")
        assert refused.headers["Retry-After"] == "2"
        stand_in.release()
        pair = pair_of(ann, message_id)
    rows = candidates(database, pair["pair_id"])
    assert [row.text for row in rows] == [reply_of(live, row.seed or 0, "hello") for row in rows]


def test_a_killed_feedback_app_takes_the_pair_up_again_with_the_same_seeds(
    new_rater: Callable[[str], httpx.Client], config: FeedbackConfig, live: str, stand_in: StandIn, database: Database
) -> None:
    ann = new_rater("ann")
    with running(create_app(config)) as url:
        ann.base_url = url
        _, message_id = ask(ann)
        stand_in.hold()
        asked = pair_of(ann, message_id, wait=False)
    before = candidates(database, asked["pair_id"])
    assert [row.text for row in before] == [None, None]
    with running(create_app(config)) as url:
        ann.base_url = url
        stand_in.release()
        pair = pair_of(ann, message_id)
        assert pair["pair_id"] == asked["pair_id"]
        assert ok(ann.post(f"/api/pairs/{pair['pair_id']}/comparison", json={"side": "b"}))
    after = candidates(database, asked["pair_id"])
    assert [(row.id, row.seed) for row in after] == [(row.id, row.seed) for row in before]
    assert [row.text for row in after] == [reply_of(live, row.seed or 0, "hello") for row in after]


def test_two_apps_sampling_one_pair_write_each_text_once(
    new_rater: Callable[[str], httpx.Client], config: FeedbackConfig, live: str, stand_in: StandIn, database: Database
) -> None:
    ann = new_rater("ann")
    with running(create_app(config)) as one, running(create_app(config)) as two:
        ann.base_url = one
        _, message_id = ask(ann)
        stand_in.hold()
        asked = pair_of(ann, message_id, wait=False)
        ann.base_url = two
        assert not pair_of(ann, message_id, wait=False)["a"]["complete"]
        with ann.stream("GET", f"/api/pairs/{asked['pair_id']}/stream") as response:
            stand_in.release()
            told = events(response)
        ann.base_url = one
        shown = pair_of(ann, message_id)
    assert len(stand_in.asked) == 2
    assert texts_of(told) == {"a": shown["a"]["text"], "b": shown["b"]["text"]}


def test_a_database_that_is_away_costs_a_retry_and_no_comparison(
    rater: httpx.Client, database: Database, postgres: EmbeddedPostgres
) -> None:
    _, message_id = ask(rater)
    pair = pair_of(rater, message_id)
    path = f"/api/pairs/{pair['pair_id']}/comparison"
    name = rater_database(database)
    close_door(postgres, name)
    refused = rater.post(path, json={"side": "a"})
    assert code_of(refused) == (503, "database_unavailable")
    open_door(postgres, name)
    assert rater.post(path, json={"side": "a"}).status_code == 201
    assert rater.post(path, json={"side": "a"}).status_code == 200


def test_replies_that_can_t_be_stored_are_told_in_one_line_and_come_later(
    rater: httpx.Client,
    database: Database,
    postgres: EmbeddedPostgres,
    stand_in: StandIn,
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages = [ask(rater)[1] for _ in range(3)]
    stand_in.hold()
    asked = [pair_of(rater, message_id, wait=False) for message_id in messages]
    name = rater_database(database)
    streams = ExitStack()
    with streams:
        reading = [streams.enter_context(rater.stream("GET", f"/api/pairs/{pair['pair_id']}/stream")) for pair in asked]
        close_door(postgres, name)
        stand_in.release()
        told = [events(response) for response in reading]
    assert [one[-1]["error"]["code"] for one in told] == ["replies_unavailable"] * 3
    logged = [record for record in caplog.records if record.name == "orchestrator.web.pair_sampling"]
    assert [record.exc_info for record in logged] == [None]
    assert logged[0].getMessage().startswith("replies can't be stored, and are sampled again when asked for: ")
    assert "\n" not in logged[0].getMessage()
    open_door(postgres, name)
    assert all(pair_of(rater, message_id)["a"]["complete"] for message_id in messages)
    said = [record.getMessage() for record in caplog.records if record.name == "orchestrator.web.pair_sampling"]
    assert said[1:] == ["replies are stored again"]


def rater_database(database: Database) -> str:
    """Name of the test's database."""
    with database() as session:
        return str(session.scalar(select(func.current_database())))


def close_door(postgres: EmbeddedPostgres, name: str) -> None:
    """End every connection to the database and take no new ones, as while Postgres restarts."""
    execute(postgres, f"alter database {name} allow_connections false")
    execute(postgres, f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")


def open_door(postgres: EmbeddedPostgres, name: str) -> None:
    """Take connections again."""
    execute(postgres, f"alter database {name} allow_connections true")


def execute(postgres: EmbeddedPostgres, statement: str) -> None:
    """Run a statement from another database of the server."""
    connection = postgres.connect("postgres")
    try:
        connection.cursor().execute(statement)
    finally:
        connection.close()
