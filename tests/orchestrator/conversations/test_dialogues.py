"""Dialogues, messages, pairs and comparisons through HTTP, and what of them stands in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from db.split import split_key
from orchestrator.conversations.contestants import policy
from orchestrator.conversations.pairings import end_pairing, open_pairing
from orchestrator.people.raters import set_status
from tests.orchestrator.web.rating import ask, code_of, ok, pair_of
from tests.orchestrator.web.stand_in import StandIn, reply_of
from tests.running import add_artifact, add_cycle, deploy

Database = Callable[[], Session]


def test_a_dialogue_goes_on_from_the_chosen_reply(rater: httpx.Client, database: Database, live: str) -> None:
    dialogue_id, message_id = ask(rater, content="Hello, there!")
    pair = pair_of(rater, message_id)
    assert pair["a"]["complete"]
    assert pair["b"]["complete"]
    choice = {"side": "b", "strength": 3, "duration_ms": 1234}
    compared = ok(rater.post(f"/api/pairs/{pair['pair_id']}/comparison", json=choice))
    second = {"content": "and then?", "parent_id": compared["continue_from"], "client_key": "m2"}
    second_id = ok(rater.post(f"/api/dialogues/{dialogue_id}/messages", json=second))["message_id"]
    pair_of(rater, second_id, "p2")
    with database() as session:
        dialogue = session.get_one(t.Dialogue, dialogue_id)
        assert (dialogue.source, dialogue.tranche, dialogue.question) == ("feedback", "online", "helpful")
        assert dialogue.split_key == split_key("hello there")
        reply = session.get_one(t.Message, compared["continue_from"])
        assert (reply.role, reply.content, reply.parent_id) == ("assistant", pair["b"]["text"], message_id)
        candidate = session.get_one(t.Candidate, reply.candidate_id)
        assert (candidate.side, candidate.text) == ("b", pair["b"]["text"])
        assert candidate.text == reply_of(live, candidate.seed or 0, "Hello, there!")
        comparison = session.get_one(t.Comparison, compared["comparison_id"])
        assert (comparison.side, comparison.strength, comparison.duration_ms) == ("b", 3, 1234)
        assert comparison.decided_at is not None
        assert session.scalars(select(t.FreshComparison.comparison_id)).all() == [comparison.id]


def test_the_prompt_is_the_path_and_not_the_other_branch(rater: httpx.Client, stand_in: StandIn) -> None:
    dialogue_id, message_id = ask(rater, content="one")
    pair = pair_of(rater, message_id)
    continued = ok(rater.post(f"/api/pairs/{pair['pair_id']}/comparison", json={"side": "a"}))["continue_from"]
    second = {"content": "two", "parent_id": continued, "client_key": "m2"}
    pair_of(rater, ok(rater.post(f"/api/dialogues/{dialogue_id}/messages", json=second))["message_id"], "p2")
    assert stand_in.asked[-1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": pair["a"]["text"]},
        {"role": "user", "content": "two"},
    ]


@pytest.mark.parametrize(
    ("begin", "question", "purpose", "instructions"),
    [
        ({"task": "helpful"}, "helpful", "training", "helpful-1"),
        ({"task": "red_team_choose_best"}, "harmless", "training", "harmless-1"),
        ({"task": "red_team"}, "more_harmful", "training", "more-harmful-1"),
        ({"task": "model_comparison"}, "helpful", "evaluation", "helpful-1"),
        ({"task": "model_comparison", "question": "harmless"}, "harmless", "evaluation", "harmless-1"),
    ],
)
def test_each_task_asks_its_question(
    rater: httpx.Client, database: Database, begin: dict[str, str], question: str, purpose: str, instructions: str
) -> None:
    begun = ok(rater.post("/api/dialogues", json=begin))
    assert (begun["question"], begun["instructions"]["version"]) == (question, instructions)
    _, message_id = ask(rater, **begin)
    pair = pair_of(rater, message_id)
    assert pair["question"] == question
    with database() as session:
        row = session.get_one(t.Pair, pair["pair_id"])
        assert (row.question, row.purpose, row.instruction_version) == (question, purpose, instructions)


def test_only_a_model_comparison_chooses_its_question(rater: httpx.Client) -> None:
    refused = rater.post("/api/dialogues", json={"task": "helpful", "question": "harmless"})
    assert code_of(refused) == (422, "wrong_question")


def test_none_goes_on_from_side_a(rater: httpx.Client, database: Database) -> None:
    _, message_id = ask(rater)
    pair = pair_of(rater, message_id)
    path = f"/api/pairs/{pair['pair_id']}/comparison"
    assert code_of(rater.post(path, json={"side": "none"})) == (422, "invalid_request")
    assert code_of(rater.post(path, json={"side": "a", "reason": "tie"})) == (422, "invalid_request")
    compared = ok(rater.post(path, json={"side": "none", "reason": "cant_tell"}))
    with database() as session:
        assert session.get_one(t.Message, compared["continue_from"]).content == pair["a"]["text"]


def test_sampling_settings_come_from_the_live_cycle_and_seeds_differ(
    rater: httpx.Client, database: Database, stand_in: StandIn
) -> None:
    with database() as session, session.begin():
        cycle = add_cycle(session, 1, max_reply_tokens=7, temperature=0.5)
        deployment = deploy(session, add_artifact(session, "next"), cycle)
    _, message_id = ask(rater)
    pair = pair_of(rater, message_id)
    with database() as session:
        rows = session.scalars(select(t.Candidate).where(t.Candidate.pair_id == pair["pair_id"])).all()
    assert [row.sampling for row in rows] == [{"max_tokens": 7, "temperature": 0.5, "top_p": 1.0}] * 2
    assert len({row.seed for row in rows}) == 2
    assert {row.deployment_id for row in rows} == {deployment.id}
    assert (stand_in.asked[-1]["max_tokens"], stand_in.asked[-1]["temperature"]) == (7, 0.5)


def test_contestants_come_from_the_pairing_table_on_random_sides(rater: httpx.Client, database: Database) -> None:
    with database() as session, session.begin():
        old, new = add_artifact(session, "old", kind="initial_policy"), add_artifact(session, "new")
        # Weight 0.000001 against 1: not drawn in 40 pairs but once in 25,000 runs of this test.
        open_pairing(session, "model_comparison", policy(session, old.id).id, policy(session, old.id).id, weight=1e-6)
        over = open_pairing(
            session, "model_comparison", policy(session, new.id).id, policy(session, new.id).id, weight=1e6
        )
        drawn = open_pairing(session, "model_comparison", policy(session, old.id).id, policy(session, new.id).id)
        end_pairing(session, over.id)
    _, message_id = ask(rater, "model_comparison")
    for number in range(40):
        pair_of(rater, message_id, f"p{number}")
    with database() as session:
        assert set(session.scalars(select(t.Pair.pairing_id))) == {drawn.id}
        sides = Counter(session.scalars(select(t.Candidate.side).where(t.Candidate.snapshot_id == old.id)))
    assert sides.total() == 40
    # 40 fair coins fall outside 5..35 with probability 2e-7.
    assert 5 <= sides["a"] <= 35


def test_the_rater_never_learns_which_snapshot_wrote_a_reply(
    rater: httpx.Client, database: Database, stand_in: StandIn
) -> None:
    with database() as session, session.begin():
        one, two = add_artifact(session, "one"), add_artifact(session, "two")
        open_pairing(session, "model_comparison", policy(session, one.id).id, policy(session, two.id).id)
    dialogue_id, message_id = ask(rater, "model_comparison")
    stand_in.refusals = [(400, "unusable_messages")] * 2
    answers = [rater.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p1"})]
    pair = rater.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p1"})
    path = f"/api/pairs/{pair.json()['pair_id']}"
    answers += [pair, rater.get(path), rater.get(f"{path}/stream"), rater.get("/health")]
    answers += [rater.post(f"{path}/comparison", json={"side": "a"}), rater.post(f"/api/dialogues/{dialogue_id}/end")]
    assert code_of(answers[0]) == (422, "not_answerable")
    assert [answer.status_code for answer in answers[1:]] == [200, 200, 200, 200, 201, 200]
    for answer in answers:
        # The stand-in signs its replies with four digits of the digest; longer pieces of one appear nowhere.
        for digest in (one.digest, two.digest):
            assert digest[7:17] not in answer.text + str(answer.headers)
        assert "seed" not in answer.text
        assert "snapshot" not in answer.text


def test_second_click_on_a_pair_is_the_same_comparison(rater: httpx.Client, database: Database) -> None:
    _, message_id = ask(rater)
    pair = pair_of(rater, message_id)
    path = f"/api/pairs/{pair['pair_id']}/comparison"
    with ThreadPoolExecutor(8) as pool:
        clicks = list(pool.map(lambda _: rater.post(path, json={"side": "a", "strength": 2}), range(8)))
    assert Counter(click.status_code for click in clicks) == {201: 1, 200: 7}
    assert len({click.text for click in clicks}) == 1
    assert code_of(rater.post(path, json={"side": "b", "strength": 2})) == (409, "already_compared")
    assert rater.get(f"/api/pairs/{pair['pair_id']}").json()["comparison"]["side"] == "a"
    with database() as session:
        assert session.scalar(select(func.count(t.Comparison.id))) == 1
        assert session.scalar(select(func.count(t.Message.id)).where(t.Message.role == "assistant")) == 1


def test_of_two_different_choices_at_once_one_stands(rater: httpx.Client, database: Database) -> None:
    _, message_id = ask(rater)
    for number in range(5):
        pair = pair_of(rater, message_id, f"p{number}")
        path = f"/api/pairs/{pair['pair_id']}/comparison"
        with ThreadPoolExecutor(2) as pool:
            clicks = list(pool.map(lambda side, path=path: rater.post(path, json={"side": side}), "ab"))
        assert sorted(click.status_code for click in clicks) == [201, 409]
    with database() as session:
        assert session.scalar(select(func.count(t.Comparison.id))) == 5
        assert session.scalar(select(func.count(t.Message.id)).where(t.Message.role == "assistant")) == 5


def test_the_same_client_key_at_once_is_one_message_and_one_pair(
    rater: httpx.Client, database: Database, stand_in: StandIn
) -> None:
    dialogue_id = ok(rater.post("/api/dialogues", json={"task": "helpful"}))["dialogue_id"]
    message = {"content": "hello", "client_key": "m1"}

    def post(_: int) -> httpx.Response:
        return rater.post(f"/api/dialogues/{dialogue_id}/messages", json=message)

    with ThreadPoolExecutor(6) as pool:
        posts = list(pool.map(post, range(6)))
        assert Counter(one.status_code for one in posts) == {201: 1, 200: 5}
        message_id = posts[0].json()["message_id"]
        pairs = list(pool.map(lambda _: pair_of(rater, message_id), range(6)))
    assert len({str(pair) for pair in pairs}) == 1
    with database() as session:
        assert session.scalar(select(func.count(t.Message.id))) == 1
        assert session.scalar(select(func.count(t.Pair.id))) == 1
        assert session.scalar(select(func.count(t.Candidate.id))) == 2


def test_a_client_key_names_one_thing(rater: httpx.Client) -> None:
    dialogue_id, message_id = ask(rater, client_key="d1")
    assert ok(rater.post("/api/dialogues", json={"task": "helpful", "client_key": "d1"}), 200)["dialogue_id"] == (
        dialogue_id
    )
    other_task = rater.post("/api/dialogues", json={"task": "red_team", "client_key": "d1"})
    assert code_of(other_task) == (409, "client_key_taken")
    other_text = {"content": "other", "client_key": "m1"}
    refused = rater.post(f"/api/dialogues/{dialogue_id}/messages", json=other_text)
    assert code_of(refused) == (409, "client_key_taken")
    pair = pair_of(rater, message_id)
    continued = ok(rater.post(f"/api/pairs/{pair['pair_id']}/comparison", json={"side": "a"}))["continue_from"]
    second = {"content": "two", "parent_id": continued, "client_key": "m2"}
    second_id = ok(rater.post(f"/api/dialogues/{dialogue_id}/messages", json=second))["message_id"]
    refused = rater.post(f"/api/messages/{second_id}/pairs", json={"client_key": "p1"})
    assert code_of(refused) == (409, "client_key_taken")


def test_a_message_has_its_place_in_the_tree(rater: httpx.Client, new_rater: Callable[[str], httpx.Client]) -> None:
    dialogue_id, message_id = ask(rater)
    path = f"/api/dialogues/{dialogue_id}/messages"

    def write(**fields: Any) -> httpx.Response:
        return rater.post(path, json={"content": "x", "client_key": "new", **fields})

    assert code_of(write()) == (409, "dialogue_begun")
    assert code_of(write(parent_id=message_id)) == (409, "wrong_parent")
    assert code_of(write(parent_id=10**9)) == (409, "wrong_parent")
    _, other_message = ask(rater, content="other")
    other_reply = ok(
        rater.post(f"/api/pairs/{pair_of(rater, other_message)['pair_id']}/comparison", json={"side": "a"})
    )["continue_from"]
    assert code_of(write(parent_id=other_reply)) == (409, "wrong_parent")
    refused = rater.post(f"/api/messages/{other_reply}/pairs", json={"client_key": "p9"})
    assert code_of(refused) == (409, "not_a_question")


def test_what_has_ended_takes_nothing_new(rater: httpx.Client) -> None:
    dialogue_id, message_id = ask(rater)
    pair, other = pair_of(rater, message_id), pair_of(rater, message_id, "p2")
    compared = rater.post(f"/api/pairs/{pair['pair_id']}/comparison", json={"side": "a"})
    first = ok(rater.post(f"/api/dialogues/{dialogue_id}/end"), 200)
    assert ok(rater.post(f"/api/dialogues/{dialogue_id}/end"), 200) == first
    repeated = rater.post(f"/api/pairs/{pair['pair_id']}/comparison", json={"side": "a"})
    assert (repeated.status_code, repeated.json()) == (200, compared.json())
    late = rater.post(f"/api/pairs/{other['pair_id']}/comparison", json={"side": "a"})
    assert code_of(late) == (409, "dialogue_ended")
    asked = rater.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p3"})
    assert code_of(asked) == (409, "dialogue_ended")


def test_only_the_rater_comes_near_a_dialogue(
    rater: httpx.Client, new_rater: Callable[[str], httpx.Client], database: Database
) -> None:
    dialogue_id, message_id = ask(rater)
    pair_id = pair_of(rater, message_id)["pair_id"]
    routes: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", f"/api/dialogues/{dialogue_id}/messages", {"content": "x", "client_key": "x"}),
        ("POST", f"/api/messages/{message_id}/pairs", {"client_key": "x"}),
        ("GET", f"/api/pairs/{pair_id}", None),
        ("GET", f"/api/pairs/{pair_id}/stream", None),
        ("POST", f"/api/pairs/{pair_id}/comparison", {"side": "a"}),
        ("POST", f"/api/dialogues/{dialogue_id}/end", None),
    ]
    other = new_rater("bob")
    nobody = httpx.Client(base_url=rater.base_url)
    stranger = httpx.Client(base_url=rater.base_url, headers={"Authorization": "Bearer made-up"})
    for method, path, body in routes:
        assert code_of(other.request(method, path, json=body)) == (404, "not_found"), path
        assert code_of(nobody.request(method, path, json=body)) == (401, "no_token"), path
        assert code_of(stranger.request(method, path, json=body)) == (401, "unknown_token"), path
    with database() as session, session.begin():
        set_status(session, "ann", "banned")
    routes.append(("POST", "/api/dialogues", {"task": "helpful"}))
    for method, path, body in routes:
        assert code_of(rater.request(method, path, json=body)) == (403, "rater_banned"), path
    with database() as session:
        assert session.scalar(select(func.count(t.Comparison.id))) == 0


UNUSABLE = [
    (b'{"content": "", "client_key": "k"}', 422),
    (b'{"content": " \\n ", "client_key": "k"}', 422),
    (b'{"content": "a\\u0000b", "client_key": "k"}', 422),
    (b'{"content": "\\ud800", "client_key": "k"}', 422),
    (b'{"content": "x", "client_key": "k", "more": 1}', 422),
    (b'{"content": "' + b"x" * 20_001 + b'", "client_key": "k"}', 422),
    (b'{"content": "' + b"x" * 1_000_001 + b'", "client_key": "k"}', 413),
    (b'{"content": ', 422),
    (b"\xff\xfe", 422),
    (b"[]", 422),
]


def test_an_unusable_message_is_refused_in_words(rater: httpx.Client, database: Database) -> None:
    dialogue_id = ok(rater.post("/api/dialogues", json={"task": "helpful"}))["dialogue_id"]
    for body, status in UNUSABLE:
        refused = rater.post(
            f"/api/dialogues/{dialogue_id}/messages", content=body, headers={"Content-Type": "application/json"}
        )
        assert refused.status_code == status, (body[:60], refused.text)
        assert len(refused.json()["error"]["message"]) > 10
    with database() as session:
        assert session.scalar(select(func.count(t.Message.id))) == 0


def test_nothing_begins_before_a_policy_is_live(new_rater: Callable[[str], httpx.Client], database: Database) -> None:
    early = new_rater("early")
    assert early.get("/health").json() == {"status": "ok", "policy_live": False, "message": "no policy is live"}
    refused = early.post("/api/dialogues", json={"task": "helpful"})
    assert code_of(refused) == (503, "no_policy_live")
    assert refused.headers["Retry-After"] == "2"
    with database() as session, session.begin():
        deploy(session, add_artifact(session, "first", kind="initial_policy"))
    dialogue_id, _ = ask(early)
    with database() as session:
        assert session.get_one(t.Dialogue, dialogue_id).tranche == "base"
