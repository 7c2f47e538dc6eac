"""Who else answers: best-of-k, an outside model, people who write. Neither reply is shown before both are there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator import cli
from orchestrator.conversations import contestants, pairings
from orchestrator.conversations.contestants import Contestant, ContestantError
from orchestrator.errors import OrchestratorError
from orchestrator.judging.standings import games
from orchestrator.people import access
from orchestrator.people.queues import add_group, join_group, leave_group
from orchestrator.people.raters import create_rater, renew_token
from orchestrator.stages.promotion import put_before_people
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.web.app import FeedbackConfig, create_app
from tests.db.rows import add_cycle
from tests.orchestrator.web.browsing import Browser, forms, plain_cells
from tests.orchestrator.web.rating import ask, candidates, code_of, events, ok, pair_of
from tests.orchestrator.web.stand_in import StandIn
from tests.running import add_artifact, deploy, running

Database = Callable[[], Session]


def live_policy(session: Session) -> Contestant:
    return contestants.policy(session, session.scalars(select(t.Deployment.snapshot_id)).one())


def meet(database: Database, task: str, add: Callable[[Session], Contestant]) -> Contestant:
    """Let a new contestant meet the live policy in a task."""
    with database() as session, session.begin():
        one = add(session)
        pairings.open_pairing(session, task, one.id, live_policy(session).id)
        return one


def of_contestant(database: Database, pair_id: int, one: Contestant) -> t.Candidate:
    """The contestant's candidate of the pair."""
    return next(row for row in candidates(database, pair_id) if row.contestant_id == one.id)


@dataclass
class Outside:
    """An outside OpenAI-compatible model, which can be held back or told to fail."""

    asked: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    """Status and body of the next answers; the last one stays."""

    def app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> Any:
            self._loop, self._open = asyncio.get_running_loop(), asyncio.Event()
            self._open.set()
            yield
            self._open.set()

        app = FastAPI(lifespan=lifespan)

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> JSONResponse:
            self.asked.append((dict(request.headers), await request.json()))
            await self._open.wait()
            status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            return JSONResponse(body, status)

        return app

    def hold(self) -> None:
        self._loop.call_soon_threadsafe(self._open.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)


GOOD = {
    "model": "big-1",
    "choices": [{"message": {"content": "from outside"}, "finish_reason": "length"}],
    "usage": {"completion_tokens": 7},
}


@pytest.fixture
def outside() -> Outside:
    return Outside(answers=[(200, GOOD)])


@pytest.fixture
def outside_url(outside: Outside) -> Iterator[str]:
    with running(outside.app()) as url:
        yield f"{url}/v1"


def test_best_of_k_is_asked_for_as_such_and_what_chose_it_is_kept(
    rater: httpx.Client, database: Database, stand_in: StandIn
) -> None:
    def add(session: Session) -> Contestant:
        policy = add_artifact(session, "initial", kind="initial_policy")
        judge = add_artifact(session, "judge", kind="preference_model")
        return contestants.add_best_of(session, "best of 4", policy.digest, judge.digest[:20], 4)

    one = meet(database, "model_comparison", add)
    _, message_id = ask(rater, "model_comparison")
    pair_id = pair_of(rater, message_id)["pair_id"]
    row = of_contestant(database, pair_id, one)
    asked = next(body for body in stand_in.asked if "best_of" in body)
    assert (asked["model"], asked["best_of"], asked["preference_model"]) == (one.digest, 4, one.preference_model)
    assert asked["seed"] == row.seed
    assert not asked["stream"]
    assert row.details == {"best_of": {"k": 4, "preference_model": one.preference_model, "score": 0.5}}
    assert (row.contestant, row.snapshot_id, row.deployment_id) == ("best of 4", one.snapshot_id, None)
    assert one.preference_model in (row.sampling or {}).values()
    ok(rater.post(f"/api/pairs/{pair_id}/comparison", json={"side": row.side}))
    with database() as session:
        (game,) = games(session)
        assert {game.first, game.second} == {"best of 4", live_policy(session).name}
        assert game.score == (1.0 if game.first == "best of 4" else 0.0)
        (brought,) = pairings.pairing_figures(session)
        assert (brought.pairs, brought.complete, brought.compared, brought.won_a, brought.won_b) == (1, 1, 1, 1, 0)


def test_what_a_pairing_of_two_policies_brought(rater: httpx.Client, database: Database) -> None:
    with database() as session, session.begin():
        other = contestants.policy(session, add_artifact(session, "other").id)
        pairings.open_pairing(session, "model_comparison", other.id, live_policy(session).id)
    for answer in ("theirs", "theirs", "ours", "none", None):
        _, message_id = ask(rater, "model_comparison")
        pair_id = pair_of(rater, message_id)["pair_id"]
        side = {row.snapshot_id == other.snapshot_id: row.side for row in candidates(database, pair_id)}
        choice = {"side": side[answer == "theirs"]} if answer != "none" else {"side": "none", "reason": "cant_tell"}
        if answer is not None:
            ok(rater.post(f"/api/pairs/{pair_id}/comparison", json=choice))
    with database() as session:
        (brought,) = pairings.pairing_figures(session)
    assert (brought.pairs, brought.complete, brought.compared) == (5, 5, 4)
    assert (brought.won_a, brought.won_b, brought.undecided) == (2, 1, 1)


def test_neither_reply_is_shown_before_both_are_complete(
    rater: httpx.Client, database: Database, outside: Outside, outside_url: str
) -> None:
    meet(database, "helpful", lambda session: contestants.add_endpoint(session, "big", outside_url, "big-1"))
    outside.hold()
    _, message_id = ask(rater)
    pair = pair_of(rater, message_id, wait=False)
    pair_id = pair["pair_id"]

    def ours_is_there() -> bool:
        return sum(row.text is not None for row in candidates(database, pair_id)) == 1

    with rater.stream("GET", f"/api/pairs/{pair_id}/stream") as response:
        until(ours_is_there)
        shown = rater.get(f"/api/pairs/{pair_id}").json()
        assert [shown[side] for side in "ab"] == [{"text": "", "complete": False}] * 2
        early = rater.post(f"/api/pairs/{pair_id}/comparison", json={"side": "a"})
        assert code_of(early) == (409, "pair_incomplete")
        outside.release()
        told = events(response)
    # Each side at once and whole: how it came tells nothing.
    assert [(event["side"], sorted(event)) for event in told] == [
        ("a", ["delta", "side"]), ("a", ["complete", "side"]), ("b", ["delta", "side"]), ("b", ["complete", "side"]),
    ]  # fmt: skip
    shown = rater.get(f"/api/pairs/{pair_id}").json()
    assert "from outside" in {shown["a"]["text"], shown["b"]["text"]}


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition in the database."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_outside_model_is_asked_with_its_key_which_is_stored_nowhere(
    config: FeedbackConfig, database: Database, live: str, outside: Outside, outside_url: str
) -> None:
    with database() as session, session.begin():
        _, token = create_rater(session, "ann")
    one = meet(
        database,
        "model_comparison",
        lambda session: contestants.add_endpoint(session, "big", outside_url + "/", " big-1 ", "BIG_KEY"),
    )
    app = create_app(replace(config, secret_of={"BIG_KEY": "s3cr3t"}.get, policy_key="ours"))
    headers = {"Authorization": f"Bearer {token}"}
    with running(app) as url, httpx.Client(base_url=url, headers=headers, timeout=20) as rater:
        _, message_id = ask(rater, "model_comparison")
        row = of_contestant(database, pair_of(rater, message_id)["pair_id"], one)
    ((sent, body),) = outside.asked
    assert sent["authorization"] == "Bearer s3cr3t"
    assert body == {
        "model": "big-1", "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 128, "temperature": 1.0, "top_p": 1.0,
    }  # fmt: skip
    assert (row.text, row.reply_tokens, row.truncated, row.details) == ("from outside", 7, True, {"model": "big-1"})
    assert (row.contestant, row.snapshot_id, row.deployment_id) == ("big", None, None)
    with database() as session:
        tables = (t.Contestant, t.Candidate, t.Pair)
        stored = [str(vars(row)) for table in tables for row in session.scalars(select(table))]
    assert "s3cr3t" not in "".join(stored)


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ((400, {"error": {"code": "context_length_exceeded", "message": "m"}}), 422, "dialogue_too_long"),
        ((422, {"error": {"code": "x", "message": "m"}}), 422, "not_answerable"),
        ((401, {"error": {"message": "bad key"}}), 503, "replies_unavailable"),
        ((200, {"choices": []}), 503, "replies_unavailable"),
        ((200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}), 503,
         "replies_unavailable"),
        ((200, ["not", "an", "object"]), 503, "replies_unavailable"),
        ((200, {"choices": [{"message": {"content": "x" * 1_000_001}}]}), 503, "replies_unavailable"),
    ],
)  # fmt: skip
def test_what_an_outside_model_does_wrong_ends_as_what_the_rater_can_do(
    config: FeedbackConfig, database: Database, live: str, outside: Outside, outside_url: str, answer: Any,
    status: int, code: str,
) -> None:  # fmt: skip
    with database() as session, session.begin():
        _, token = create_rater(session, "ann")
    meet(database, "helpful", lambda session: contestants.add_endpoint(session, "big", outside_url, "big-1"))
    outside.answers = [answer]
    headers = {"Authorization": f"Bearer {token}"}
    app = create_app(replace(config, sampling_timeout_s=0.5))
    with running(app) as url, httpx.Client(base_url=url, headers=headers, timeout=20) as rater:
        _, message_id = ask(rater)
        refused = rater.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p"})
        assert code_of(refused) == (status, code)
        # Nothing is lost: once the model answers, the same pair becomes complete.
        outside.answers = [(200, GOOD)]
        assert "from outside" in json.dumps(pair_of(rater, message_id, "p"))


def test_it_is_asked_again_after_a_fault(
    rater: httpx.Client, database: Database, outside: Outside, outside_url: str
) -> None:
    meet(database, "helpful", lambda session: contestants.add_endpoint(session, "big", outside_url, "big-1"))
    outside.answers = [(500, {}), (429, {}), (200, GOOD)]
    _, message_id = ask(rater)
    pair_of(rater, message_id)
    assert len(outside.asked) == 3


@pytest.fixture
def writer_browser(feedback_url: str, database: Database, live: str) -> Iterator[Browser]:
    """A browser of somebody who writes replies in the task helpful."""

    def add(session: Session) -> Contestant:
        rater, _ = create_rater(session, "wil")
        add_group(session, "writers")
        join_group(session, "writers", "wil")
        browser.client.cookies.set("orchestrator_session", access.begin_session(session, rater.id))
        return contestants.add_writer(session, "people", "writers")

    browser = Browser(feedback_url)
    meet(database, "helpful", add)
    yield browser
    browser.client.close()


def test_a_person_writes_a_reply_while_the_rater_goes_on(
    rater: httpx.Client, database: Database, writer_browser: Browser, live: str
) -> None:
    _, message_id = ask(rater, content="what is <b>love</b>?")
    waiting = rater.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p"})
    assert code_of(waiting) == (503, "being_written")
    assert waiting.headers["retry-after"] == "20"
    assert "1 waits for one" in writer_browser.get("/").text
    page = writer_browser.get("/write")
    assert "what is &lt;b&gt;love&lt;/b&gt;?" in page.text
    (form,) = [form for form in forms(page) if form.action.startswith("/write")]
    after = writer_browser.send(page, form.action, content="baby don't hurt me")
    assert "No conversation waits" in after.text
    # The same form again is the same reply; other words are refused, and what was written stays.
    assert writer_browser.send(page, form.action, content="baby don't hurt me").status_code == 200
    other = writer_browser.send(page, form.action, content="something else")
    assert (other.status_code, "in the meantime" in other.text) == (409, True)
    pair = pair_of(rater, message_id, "p")
    assert "baby don't hurt me" in {pair["a"]["text"], pair["b"]["text"]}
    with database() as session:
        row = session.scalars(select(t.Candidate).where(t.Candidate.contestant == "people")).one()
        writer = session.scalars(select(t.Rater.id).where(t.Rater.handle == "wil")).one()
        assert (row.written_by_id, row.snapshot_id, row.reply_tokens) == (writer, None, None)
    assert form.action == f"/write/{row.id}"


def test_nobody_writes_against_themselves_or_for_a_group_they_left(
    new_rater: Callable[[str], httpx.Client], database: Database, writer_browser: Browser, feedback_url: str
) -> None:
    with database() as session, session.begin():
        token = renew_token(session, "wil")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=feedback_url, headers=headers, timeout=20) as own:
        _, message_id = ask(own)
        pair_of(own, message_id, wait=False)
    assert "No conversation waits" in writer_browser.get("/write").text
    ann = new_rater("ann")
    _, message_id = ask(ann)
    pair_of(ann, message_id, wait=False)
    page = writer_browser.get("/write")
    assert "hello" in page.text
    (form,) = [form for form in forms(page) if form.action.startswith("/write")]
    with database() as session, session.begin():
        leave_group(session, "writers", "wil")
    assert writer_browser.send(page, form.action, content="late").status_code == 404
    assert "Write a reply" not in writer_browser.get("/").text


def test_rejection_sampled_replies_are_a_tranche_of_their_own(
    new_rater: Callable[[str], httpx.Client], database: Database, stand_in: StandIn
) -> None:
    with database() as session, session.begin():
        initial = add_artifact(session, "initial", kind="initial_policy")
        deploy(session, initial)
        judge = add_artifact(session, "judge", kind="preference_model")
        best = contestants.add_best_of(session, "rs", initial.digest, judge.digest, 16)
        pairings.open_pairing(session, "helpful", best.id, best.id)
    rater = new_rater("ann")
    _, message_id = ask(rater)
    pair_of(rater, message_id)
    # A request for each: the next seeds belong to the first one's other three.
    assert [(body["n"], body["best_of"]) for body in stand_in.asked] == [(1, 16), (1, 16)]
    ask(rater, "red_team")
    with database() as session:
        rows = session.execute(select(t.Dialogue.task, t.Dialogue.tranche).order_by(t.Dialogue.id)).all()
    assert [tuple(row) for row in rows] == [("helpful", "rs"), ("red_team", "base")]


def test_contestants_that_cannot_be_are_refused_with_what_to_do(session: Session) -> None:
    policy = add_artifact(session, "p", kind="snapshot").digest
    judge = add_artifact(session, "j", kind="preference_model").digest
    add_group(session, "writers")
    for message, act in {
        "k is 1; expected 2 to 64": lambda: contestants.add_best_of(session, "x", policy, judge, 1),
        "no preference model": lambda: contestants.add_best_of(session, "x", policy, policy, 4),
        "no policy with a digest": lambda: contestants.add_best_of(session, "x", judge, judge, 4),
        "as https://host/v1": lambda: contestants.add_endpoint(session, "x", "ftp://host", "m"),
        "holds a password": lambda: contestants.add_endpoint(session, "x", "https://u:p@host/v1", "m"),
        "If it was the key itself": lambda: contestants.add_endpoint(session, "x", "https://h/v1", "m", "sk-abc"),
        "no group 'nobody'": lambda: contestants.add_writer(session, "x", "nobody"),
        "not usable": lambda: contestants.add_writer(session, "sha256:0", "writers"),
        "no contestant 'nobody'": lambda: contestants.get_contestant(session, "nobody"),
        "no task 'chess'": lambda: pairings.open_pairing(session, "chess", 1, 1),
        "weight is nan": lambda: pairings.open_pairing(session, "helpful", 1, 1, weight=float("nan")),
        "no pairing 99": lambda: pairings.end_pairing(session, 99),
    }.items():
        with pytest.raises(OrchestratorError, match=message):
            act()
    contestants.add_writer(session, "x", "writers")
    with pytest.raises(ContestantError, match="exists already"):
        contestants.add_writer(session, "x", "writers")
    # A policy needs no adding: its digest is its name.
    one = contestants.get_contestant(session, policy[7:20])
    assert (one.kind, one.name) == ("policy", policy)
    assert contestants.get_contestant(session, policy) == one


def test_the_pairing_table_is_edited_at_the_desk_and_by_command(
    admin: Browser, database: Database, live: str, database_url: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with database() as session, session.begin():
        judge = add_artifact(session, "judge", kind="preference_model").digest
    page = admin.get("/desk/pairings")
    best = {"kind": "best_of", "name": "best <16>", "policy": live, "preference_model": judge, "k": "16"}
    assert admin.send(page, "/contestants", **best).status_code == 200
    twice = admin.send(page, "/contestants", **best)
    assert (twice.status_code, "exists already" in twice.text) == (422, True)
    meeting = {"task": "model_comparison", "a": "best <16>", "b": live, "weight": "2.5"}
    page = admin.send(page, "/desk/pairings", **meeting)
    assert "best &lt;16&gt;" in page.text
    assert "<16>" not in page.text
    assert "<td>2.5</td>" in plain_cells(page.text)
    wrong = admin.send(page, "/desk/pairings", **(meeting | {"weight": "much"}))
    assert (wrong.status_code, "expected a number above 0" in wrong.text) == (422, True)
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert cli.main(["pairing", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["a"], row["b"], row["weight"], row["pairs"]) == ("best <16>", live[7:19], 2.5, 0)
    assert cli.main(["pairing", "end", str(row["id"])]) == 0
    assert cli.main(["contestant", "endpoint", "big", "--url", "https://h/v1", "--model", "m"]) == 0
    assert cli.main(["pairing", "open", "helpful", "big", live[:17], "--weight", "3"]) == 0
    assert cli.main(["contestant", "list"]) == 0
    assert "https://h/v1" in capsys.readouterr().out
    assert cli.main(["contestant", "writer", "people", "--group", "none"]) == 2
    assert "no group 'none'" in capsys.readouterr().err
    shown = admin.get("/desk/pairings").text
    assert plain_cells(shown).count("<td>ended") == 1
    page = admin.get("/desk/pairings")
    admin.send(page, "/end")
    with database() as session:
        assert pairings.active_pairings(session) == []


@pytest.fixture
def three_weeks(database_url: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests in the store of the initial policy, last week's snapshot and this week's."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
    digests = []
    for name in ("initial", "last week's", "this week's"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights").write_text(name)
        digests.append(store.publish(folder).digest)
    return digests


def test_a_cycle_ends_the_pairings_of_cycles_and_not_those_of_an_operator(
    database: Database, three_weeks: list[str]
) -> None:
    with database() as session, session.begin():
        ids = [add_artifact(session, digest, digest=digest).id for digest in three_weeks]
        initial, last, this = (contestants.policy(session, artifact_id).id for artifact_id in ids)
        week = add_cycle(session, config={"initial_policy": {"path": "unused"}})
        pairings.open_pairing(session, "model_comparison", last, initial, week.id)
        by_hand = pairings.open_pairing(session, "model_comparison", this, last).id
    opened = put_before_people(week.id, ids[2], ids[0])
    assert put_before_people(week.id, ids[2], ids[0]) == opened
    with database() as session:
        assert [pairing.id for pairing in pairings.active_pairings(session)] == [by_hand, opened]


def test_a_cycle_lets_people_compare_its_snapshot_with_what_was_live_before_too(
    database: Database, three_weeks: list[str]
) -> None:
    with database() as session, session.begin():
        ids = [add_artifact(session, digest, digest=digest).id for digest in three_weeks]
        initial, last, this = (contestants.policy(session, artifact_id).id for artifact_id in ids)
        before, week = add_cycle(session, "promoted"), add_cycle(session, config={"initial_policy": {"path": "unused"}})
        stale = pairings.open_pairing(session, "model_comparison", last, initial, before.id).id
        # The cycle has promoted: its snapshot is live by now, and what it replaced stands in the evidence.
        evidence = {"kl_nats": 2.0, "live": {"id": ids[1]}}
        session.add(t.Decision(cycle_id=week.id, snapshot_id=ids[2], decision="promote", reasons=[],
                               evidence=evidence, decided_by="gates"))  # fmt: skip
        deploy(session, session.get_one(t.Artifact, ids[2]))
    for _ in range(2):
        put_before_people(week.id, ids[2], ids[0])
        with database() as session:
            active = pairings.active_pairings(session, "model_comparison")
            assert [(pairing.a.id, pairing.b.id, pairing.weight) for pairing in active] == [
                (this, initial, 1.0),
                (this, last, 1.0),
            ]
    with database() as session:
        assert session.get_one(t.Pairing, stale).ended_at is not None


def test_a_snapshot_with_the_initial_policys_weights_is_not_put_before_people(
    database: Database, database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with database() as session, session.begin():
        initial, last, this = (add_artifact(session, name).id for name in ("initial", "last week's", "this week's"))
        week = add_cycle(session, config={"initial_policy": {"path": "unused"}})
        before = pairings.open_pairing(
            session, "model_comparison", contestants.policy(session, last).id, contestants.policy(session, initial).id
        ).id
        # PPO was stopped at once: the snapshot has files of its own, and no distance from the initial policy.
        session.add(t.Decision(cycle_id=week.id, snapshot_id=this, decision="refuse", reasons=[],
                               evidence={"kl_nats": 0.0}, decided_by="gates"))  # fmt: skip
    assert put_before_people(week.id, this, initial) is None
    assert put_before_people(week.id, initial, initial) is None
    with database() as session:
        assert [pairing.id for pairing in pairings.active_pairings(session)] == [before]
