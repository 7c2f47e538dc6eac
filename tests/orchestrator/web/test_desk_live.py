"""The desk's page of what is live: operators by name, deciding, going back, and whose name stands on what."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.policy.results import JudgedReply
from orchestrator.people.operators import OperatorError, add_operator, end_operator
from orchestrator.reports.samples import Sample, sample_lines
from orchestrator.store import approvals
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.store.deployments import deploy as put_live
from orchestrator.store.live import deployments
from orchestrator.web.app import FeedbackConfig
from orchestrator.web.pages.desk import live as desk_live
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.service import Feedback
from tests.orchestrator.feedback_app import ADMIN_TOKEN
from tests.orchestrator.web.browsing import Browser, forms
from tests.orchestrator.web.stand_in import StandIn
from tests.running import add_artifact, deploy

Database = Callable[[], Session]
EVIDENCE = {"kl_nats": 3.0, "live": {"gain": {"gain": 0.418}}}
SignIn = Callable[[str], Browser]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")


@pytest.fixture
def config(config: FeedbackConfig, store: ArtifactStore, tmp_path: Path) -> FeedbackConfig:
    return replace(config, artifact_url=store.url, cache=tmp_path / "cache")


@contextmanager
def a_server(answers: dict[str, object]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that answers these paths with JSON, others with {}, and what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.command, self.path))
            body = json.dumps(answers.get(self.path, {})).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def sign_in(database: Database, feedback_url: str) -> Iterator[SignIn]:
    """Makes an operator of the name and signs them in."""
    with ExitStack() as stack:

        def enter(name: str) -> Browser:
            with database() as session, session.begin():
                _, token = add_operator(session, name)
            browser = Browser(feedback_url)
            stack.callback(browser.client.close)
            page = browser.client.post("/desk/sign-in", data={"token": token})
            assert page.status_code == 200
            assert f'<span class="who">{name}</span>' in page.text
            return browser

        yield enter


@pytest.fixture
def waiting(database: Database, live: str) -> str:
    """A cycle waits; the digest of its snapshot."""
    with database() as session, session.begin():
        cycle = t.Cycle(number=4, name="test", state="open", config={})
        snapshot = add_artifact(session, "week 4")
        session.add(cycle)
        session.flush()
        verdict = {"gate": "kl", "passed": True, "reason": "KL is <b>3</b> nats"}
        approvals.hold_for_decision(
            session, cycle.id, snapshot.id, "it is to be", [verdict], EVIDENCE, timedelta(hours=48)
        )
        return snapshot.digest


def cells(html: str, gate: str) -> list[str]:
    """What a table of gates says of one."""
    [row] = re.findall(rf"<tr><td[^>]*>{gate}</td>(.*?)</tr>", html)
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


@pytest.fixture
def replies(database: Database, waiting: str, store: ArtifactStore, tmp_path: Path) -> None:
    """The report of the cycle that waits, with a sample of either kind."""
    asked = {"helpful": "How do I bake?", "harmless": "How do I <b>poison</b>?"}
    samples = [
        Sample(kind, judged(kind, text, f"old {kind}", -1.0), judged(kind, text, f"new <i>{kind}</i>", 0.5), "live")
        for kind, text in asked.items()
    ]
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sample_lines(samples)))
    with database() as session, session.begin():
        report = add_artifact(session, "report", kind="report", digest=store.publish(folder).digest)
        cycle_id = session.scalars(select(t.Cycle.id).where(t.Cycle.number == 4)).one()
        session.add(t.Stage(cycle_id=cycle_id, name="write_report", state="done", artifact_id=report.id))


def judged(kind: str, asked: str, reply: str, score: float) -> JudgedReply:
    """A reply to a prompt of one message."""
    return JudgedReply(kind, kind, [{"role": "user", "content": asked}], reply, score, 1.0, 7, False)


def decided(database: Database) -> list[tuple[str, str, str, str, str | None]]:
    with database() as session:
        return [
            (one.decision, one.decided_by, one.identity, one.via, one.note)
            for one in session.scalars(
                select(t.Decision).where(t.Decision.decided_by != "test").order_by(t.Decision.id)
            )
        ]


def test_an_operator_s_name_stands_on_what_they_did_until_they_end(
    sign_in: SignIn, admin: Browser, database: Database, live: str
) -> None:
    ada = sign_in("Ada")
    ada.send(ada.get("/desk/notices"), "/desk/announcements", content="No work on Friday.")
    admin.send(admin.get("/desk/notices"), "/end")
    with database() as session:
        acts = [(a.actor, a.identity, a.via, a.act, a.subject) for a in session.scalars(select(t.OperatorAct))]
    assert acts == [
        ("Ada", "proven", "desk", "announce", "every rater"),
        ("admin", "proven", "desk", "end_announcement", "announcement 1"),
    ]
    assert re.search(
        r"<td[^>]*>Ada</td>\s*<td[^>]*>proven, desk</td>\s*<td[^>]*>announce</td>", admin.get("/desk/live").text
    )
    page = ada.get("/desk/notices")
    with database() as session, session.begin():
        end_operator(session, "Ada")
        with pytest.raises(OperatorError, match="a name is given once"):
            add_operator(session, "Ada")
    # A report is no page of the desk's templates, and asks by itself.
    assert [ada.get(path).status_code for path in ("/desk", "/desk/live", "/desk/cycles/1/report")] == [401] * 3
    assert ada.send(page, "/desk/announcements", content="Still here").status_code == 401
    with database() as session:
        assert len(session.scalars(select(t.Announcement)).all()) == 1


def test_what_a_person_decides_on_has_replies_old_and_new_beside_it(sign_in: SignIn, replies: None) -> None:
    html = sign_in("Ada").get("/desk/live").text
    shown = html[html.index('id="waits"') : html.index("/desk/approvals/1")]
    assert re.findall(r"<h3>(.*?)</h3>", shown) == ["A helpful prompt", "A harmless prompt"]
    assert re.findall(r"<h4>(.*?)</h4>", shown) == ["What is live", "The new policy"] * 2
    assert re.findall(r'<p class="written">(.*?)</p>', shown) == [
        "old helpful", "new &lt;i&gt;helpful&lt;/i&gt;", "old harmless", "new &lt;i&gt;harmless&lt;/i&gt;",
    ]  # fmt: skip
    assert "How do I &lt;b&gt;poison&lt;/b&gt;?" in shown
    assert shown.count("score -1.00, 7 tokens") == shown.count("score 0.50, 7 tokens") == 2


def test_without_a_report_one_decides_all_the_same(sign_in: SignIn, waiting: str) -> None:
    html = sign_in("Ada").get("/desk/live").text
    assert '/desk/approvals/1"' in html
    assert "A helpful prompt" not in html


def test_the_gates_of_what_is_live_fold_below_why(sign_in: SignIn, database: Database, live: str) -> None:
    passed = {"gate": "live_gain", "passed": True, "reason": "+0.418 lies above 0", "remark": "barely"}
    with database() as session, session.begin():
        snapshot = add_artifact(session, "week 2")
        decision = t.Decision(
            snapshot_id=snapshot.id, decision="promote", reasons=[passed], evidence=EVIDENCE, decided_by="gates"
        )
        session.add(decision)
        session.flush()
        put_live(session, snapshot.id, decision.id, None)
    html = sign_in("Ada").get("/desk").text
    said = "its one gate passed; its replies score 0.42 above those of the policy that was live"
    assert f"<dt>Why</dt><dd>{said}" in html
    assert "<details><summary>The gates and their numbers</summary>" in html
    assert cells(html, "Gain over the live policy") == ["passed", "+0.418 lies above 0. Remark: barely"]


def test_another_instance_s_prefect_server_is_written_nothing(
    database: Database, live: str, config: FeedbackConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The server says whose it is before anything is published there, or a run is started."""
    with a_server({"/api/variables/name/orchestrator_instance": {"value": "somebody else's"}}) as (url, asked):
        desk = Desk(Feedback(replace(config, prefect_api_url=f"{url}/api")))
        desk_live._carry_out(desk, 4)
    assert {path for _, path in asked} <= {"/api/variables/name/orchestrator_instance", "/api/admin/settings"}
    assert "belongs to instance somebody else's" in caplog.text


@pytest.mark.parametrize("answer", ["promote", "refuse"])
def test_what_waits_is_decided_once_with_name_and_reason(
    answer: str, sign_in: SignIn, database: Database, waiting: str
) -> None:
    ada, bob = sign_in("Ada"), sign_in("Bob")
    page = ada.get("/desk")
    assert "Waits for a decision" in page.text
    assert 'href="/desk/live#waits"' in page.text
    page, old = ada.get("/desk/live"), bob.get("/desk/live")
    assert waiting[:19] in page.text
    assert "Asked because: it is to be." in page.text
    assert "Its one gate passed; its replies score 0.42 above those of the policy that was live" in page.text
    assert cells(page.text, "Distance from the initial policy") == ["passed", "KL is &lt;b&gt;3&lt;/b&gt; nats"]
    assert 'href="/desk/cycles/4/report"' in page.text
    nothing = ada.send(page, "/approvals/1", answer=answer, reason=" ")
    assert (nothing.status_code, "No reason was given" in nothing.text) == (422, True)
    assert ada.send(page, "/approvals/1", reason="undecided").status_code == 422
    after = ada.send(page, "/approvals/1", answer=answer, reason="shorter answers")
    done = {"promote": "promoted", "refuse": "refused"}[answer]
    assert f"Cycle 4: Ada (proven by a token) {done} it at " in after.text
    assert "/approvals/" not in after.text
    # Nobody is sent to give up what was just decided.
    assert "it is being carried out" in after.text
    assert "cancel-cycle" not in after.text
    late = bob.send(old, "/approvals/1", answer="refuse", reason="no")
    assert late.status_code == 422
    assert f"decided already: Ada (proven by a token) {done} it" in late.text
    assert decided(database) == [(answer, "Ada", "proven", "desk", "shorter answers")]


def test_one_goes_back_and_puts_any_policy_live(
    sign_in: SignIn, database: Database, live: str, stand_in: StandIn
) -> None:
    with database() as session, session.begin():
        deploy(session, add_artifact(session, "week 2"))
        refused = add_artifact(session, "refused").digest
    ada = sign_in("Ada")
    page = ada.get("/desk/live")
    assert f"what was live before: {live[:19]}" in page.text
    after = ada.send(page, "/roll-back", reason="it <i>shouts</i>", digest="")
    assert "what was live before" not in after.text  # twice would go back two, and there was one
    assert f'<option value="{live}">' not in after.text  # it is live now
    assert "rolled back: it &lt;i&gt;shouts&lt;/i&gt;" in after.text
    assert stand_in.admin_calls == ["load", "refresh"]
    # Sent again from the page of before, it would go back once more.
    again = ada.send(page, "/roll-back", reason="it shouts", digest="")
    assert (again.status_code, "Something else has gone live since" in again.text) == (409, True)
    ada.send(after, "/live/promote", reason="milder", digest=refused)
    with database() as session:
        history = deployments(session, 9)
    assert [(one.digest, one.decision, one.decided_by) for one in history[:2]] == [
        (refused, "by_hand", "Ada"), (live, "roll_back", "Ada"),
    ]  # fmt: skip


def test_what_the_desk_refuses_leads_back_to_the_desk(sign_in: SignIn, database: Database, live: str) -> None:
    with database() as session, session.begin():
        deploy(session, add_artifact(session, "week 2"))
    ada = sign_in("Ada")
    page = ada.get("/desk/live")
    ada.client.headers["Referer"] = str(page.url)
    ada.send(page, "/roll-back", reason="it shouts", digest="")
    form = forms(ada.get("/desk/live"))[-1].values | {"reason": "again", "digest": ""}
    refused = ada.client.post("/desk/live/roll-back", data=form)
    assert refused.status_code == 422
    assert "no way back. Put another one live: at the desk under Live, or by <code>orchestrator promote" in refused.text
    assert '<a class="button" href="/desk/live">Back</a>' in refused.text
    assert '<a class="home" href="/desk">' in refused.text
    assert '<a href="/desk/cycles">Cycles</a>' in refused.text
    # A link of another site leads nowhere but to the desk.
    ada.client.headers["Referer"] = "https://elsewhere.example/desk/live"
    assert '<a class="button" href="/desk">Back</a>' in ada.get("/desk/nothing").text


def test_a_policy_that_can_t_be_served_changes_nothing(
    sign_in: SignIn, database: Database, live: str, stand_in: StandIn
) -> None:
    with database() as session, session.begin():
        now = add_artifact(session, "week 2")
        deploy(session, now)
    stand_in.admin_refusals = True
    ada = sign_in("Ada")
    refused = ada.send(ada.get("/desk/live"), "/roll-back", reason="it shouts", digest="")
    assert (refused.status_code, "broken weights" in refused.text) == (422, True)
    with database() as session:
        assert [one.digest for one in deployments(session, 9)] == [now.digest, live]


def test_health_tells_the_admin_alone_who_decided(feedback_url: str, live: str) -> None:
    url = f"{feedback_url}/health"
    assert httpx.get(url).json() == {"status": "ok", "policy_live": True}
    assert "deployment" not in httpx.get(url, headers={"Authorization": "Bearer a guess"}).json()
    told = httpx.get(url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()["deployment"]
    assert (told["digest"], told["decided_by"], told["share"]) == (live, "test", 1.0)
