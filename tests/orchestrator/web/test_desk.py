"""The desk: closed without the admin token, apart from raters, and every form does what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import Accuracy
from orchestrator.people import access
from orchestrator.people.quality import figures_of, repeated_openings, times_by_task
from orchestrator.people.raters import create_rater
from orchestrator.web.app import FeedbackConfig, create_app
from orchestrator.web.desk_access import DESK_LIFETIME_S, desk_cookie, is_desk_cookie
from tests.db.rows import add_comparison
from tests.orchestrator.published_results import held_out_report, preference_model_results
from tests.orchestrator.web.browsing import Browser, forms, plain_cells
from tests.orchestrator.web.rating import ask, ok, pair_of
from tests.orchestrator.web.routes import routes_of
from tests.running import add_artifact, running

Database = Callable[[], Session]

GET_ROUTES = (
    "/desk",
    "/desk/live",
    "/desk/raters/1",
    "/desk/raters/1/touched",
    "/desk/raters/1/erase",
    "/desk/dialogues/1",
    "/desk/invitations",
    "/desk/studies",
    "/desk/instructions",
    "/desk/instructions/1/1",
    "/desk/instructions/1/1/edit",
    "/desk/work",
    "/desk/pairings",
    "/desk/notices",
    "/desk/elo",
    "/desk/cycles",
    "/desk/cycles/1/report",
)
POST_ROUTES = (
    "/desk/approvals/1",
    "/desk/live/roll-back",
    "/desk/live/promote",
    "/desk/raters/1/status",
    "/desk/raters/1/sign-out",
    "/desk/raters/1/withdraw",
    "/desk/raters/1/erase",
    "/desk/raters/1/erase/go-on",
    "/desk/invitations",
    "/desk/invitations/1/end",
    "/desk/studies",
    "/desk/studies/1/end",
    "/desk/instructions/1",
    "/desk/instructions/1/preview",
    "/desk/queues",
    "/desk/queues/1/close",
    "/desk/groups",
    "/desk/groups/join",
    "/desk/groups/leave",
    "/desk/pairings",
    "/desk/pairings/1/end",
    "/desk/contestants",
    "/desk/announcements",
    "/desk/announcements/1/end",
    "/desk/problems/1/handled",
    "/desk/sign-out",
)


def test_the_desk_is_closed_to_everybody_else(feedback_url: str, database: Database, live: str) -> None:
    with database() as session, session.begin():
        rater, token = create_rater(session, "ann")
        cookie = access.begin_session(session, rater.id)
    for given in ({}, {"orchestrator_session": cookie}, {"orchestrator_desk": "1.x.y"}, {"orchestrator_desk": cookie}):
        with httpx.Client(base_url=feedback_url, cookies=given, headers={"Authorization": f"Bearer {token}"}) as client:
            for path in GET_ROUTES:
                assert client.get(path).status_code == 401, (path, given)
            for path in POST_ROUTES:
                assert client.post(path, data={"csrf": "x"}).status_code == 401, (path, given)
    wrong = httpx.post(f"{feedback_url}/desk/sign-in", data={"token": "a guess"})
    assert (wrong.status_code, "not the admin token" in wrong.text) == (401, True)


def test_every_route_of_the_desk_is_tried_above(config: FeedbackConfig) -> None:
    paths = {
        (method, re.sub(r"\{\w+\}", "1", route.path))
        for route in routes_of(create_app(config).routes)
        for method in route.methods or set()
        if route.path.startswith("/desk") and method != "HEAD" and "sign-in" not in route.path
    }
    assert paths == {("GET", path) for path in GET_ROUTES} | {("POST", path) for path in POST_ROUTES}


def test_without_an_admin_token_nobody_sits_at_the_desk(config: FeedbackConfig) -> None:
    with running(create_app(replace(config, admin_token=None))) as url:
        assert "closed" in httpx.get(f"{url}/desk/sign-in").text
        assert httpx.post(f"{url}/desk/sign-in", data={"token": ""}).status_code in (401, 422)
        assert httpx.post(f"{url}/desk/sign-in", data={"token": "None"}).status_code == 401
        assert httpx.get(f"{url}/desk").status_code == 401


def test_a_session_of_the_desk_is_signed_and_ends() -> None:
    cookie = desk_cookie("secret", now=1000)
    assert is_desk_cookie(cookie, "secret", now=1000 + DESK_LIFETIME_S - 1)
    assert not is_desk_cookie(cookie, "secret", now=1000 + DESK_LIFETIME_S)
    assert not is_desk_cookie(cookie, "another", now=1000)
    ends, _, rest = cookie.partition(".")
    assert not is_desk_cookie(f"{int(ends) + 9999}.{rest}", "secret", now=1000)
    for broken in ("", ".", "..", "x.y.z", cookie + "0", cookie[:-1]):
        assert not is_desk_cookie(broken, "secret", now=1000)


def test_forms_need_the_desks_own_token_and_origin(admin: Browser, database: Database) -> None:
    with database() as session, session.begin():
        rater, _ = create_rater(session, "ann")
        rater_id = rater.id
    path = f"/desk/raters/{rater_id}/status"
    page = admin.get(f"/desk/raters/{rater_id}")
    assert admin.client.post(path, data={"csrf": "forged", "status": "banned"}).status_code == 403
    (form,) = [form for form in forms(page) if form.action == path]
    crossed = admin.client.post(path, data=form.values | {"status": "banned"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert crossed.status_code == 403
    with database() as session:
        assert session.scalars(select(t.Rater.status)).one() == "normal"


def test_a_rater_is_banned_and_signed_out(admin: Browser, database: Database, feedback_url: str) -> None:
    with database() as session, session.begin():
        rater, token = create_rater(session, "ann")
        rater_id = rater.id
        cookie = access.begin_session(session, rater.id)
    page = admin.get(f"/desk/raters/{rater_id}")
    after = admin.send(page, f"/desk/raters/{rater_id}/sign-out")
    assert after.status_code == 200
    with httpx.Client(base_url=feedback_url, cookies={"orchestrator_session": cookie}) as rater_browser:
        assert rater_browser.get("/").status_code == 401
    admin.send(page, "/status", status="banned")
    refused = httpx.post(
        f"{feedback_url}/api/dialogues", json={"task": "helpful"}, headers={"Authorization": f"Bearer {token}"}
    )
    assert refused.status_code == 403
    unknown = admin.send(page, "/status", status="nice")
    assert (unknown.status_code, "expected one of" in unknown.text) == (422, True)


def test_a_rater_is_withdrawn_only_by_typing_the_handle(admin: Browser, database: Database, feedback_url: str) -> None:
    with database() as session, session.begin():
        comparison = add_comparison(session)
        rater, token = create_rater(session, "ann")
        rater_id, other_id = rater.id, comparison.rater_id
        add_comparison(session, "Again?", rater=rater)
        cookie = access.begin_session(session, rater.id)
    page = admin.get(f"/desk/raters/{rater_id}/touched")
    assert "1 comparisons" in page.text
    refused = admin.send(page, "/withdraw", handle="anne", note="a mail")
    assert (refused.status_code, "type &#39;ann&#39;" in refused.text) == (422, True)
    with database() as session:
        assert session.scalars(select(t.Withdrawal)).all() == []
    after = admin.send(page, "/withdraw", handle=" ann ", note="a <mail>")
    assert re.search(r"Withdrew on .* UTC: a &lt;mail&gt;\.", after.text)
    assert "/withdraw" not in after.text
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.post(f"{feedback_url}/api/dialogues", json={"task": "helpful"}, headers=headers).status_code == 401
    with httpx.Client(base_url=feedback_url, cookies={"orchestrator_session": cookie}) as rater_browser:
        assert rater_browser.get("/").status_code == 403
    page = admin.get(f"/desk/raters/{rater_id}")
    assert "Withdrew, for good." in page.text
    assert "/status" not in page.text
    with database() as session:
        assert session.scalars(select(t.Withdrawal.rater_id)).all() == [rater_id]
        assert session.get_one(t.Rater, other_id).status == "normal"
    assert admin.get("/desk/raters/999/touched").status_code == 404


def test_what_raters_wrote_is_read_and_not_run(
    admin: Browser, new_rater: Callable[[str], httpx.Client], live: str, database: Database
) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    rater = new_rater("ann")
    dialogue_id, message_id = ask(rater, content=hostile)
    pair = pair_of(rater, message_id)
    ok(rater.post(f"/api/pairs/{pair['pair_id']}/comparison", json={"side": "b", "strength": 3, "duration_ms": 4200}))
    listed = admin.get("/desk")
    assert re.search(r"ann</a></td><td>normal</td><td>1</td><td>1</td>\s*<td>4\.2 s</td>", plain_cells(listed.text))
    with database() as session:
        rater_id = session.scalars(select(t.Rater.id)).one()
    one = admin.get(f"/desk/raters/{rater_id}")
    whole = admin.get(f"/desk/dialogues/{dialogue_id}")
    for page in (one, whole):
        assert "<script>" not in page.text
        assert "<img" not in page.text
        assert "&lt;script&gt;" in page.text
    assert "chosen: B (strength 3), 4.2 s" in whole.text
    assert re.search(r"Reply B, chosen <small>candidate:\d+</small>", whole.text)
    assert "default-src 'none'" in whole.headers["content-security-policy"]


def test_an_invitation_made_at_the_desk_works_and_is_shown_once(
    admin: Browser, database: Database, feedback_url: str
) -> None:
    page = admin.get("/desk/invitations")
    made = admin.send(page, "/desk/invitations", label="the <b>May</b> course", max_uses="2", days="3")
    link = re.search(r"http://127\.0\.0\.1:\d+/join/[\w-]+", made.text)
    assert link is not None
    assert "<b>May</b>" not in made.text
    assert httpx.get(link.group(0)).status_code == 200
    again = admin.get("/desk/invitations")
    assert "/join/" not in again.text
    wrong = admin.send(page, "/desk/invitations", label="x", max_uses="many", days="")
    assert (wrong.status_code, "whole numbers" in wrong.text) == (422, True)
    nameless = admin.send(page, "/desk/invitations", label=" ", max_uses="", days="")
    assert (nameless.status_code, "needs a label" in nameless.text) == (422, True)
    admin.send(again, "/end")
    assert httpx.get(link.group(0)).status_code == 410


def test_figures_of_a_rater_by_hand(
    admin: Browser, new_rater: Callable[[str], httpx.Client], live: str, database: Database
) -> None:
    rater = new_rater("ann")
    answers = [
        {"side": "a", "strength": 1, "duration_ms": 1000},
        {"side": "a", "strength": 4, "duration_ms": 9000},
        {"side": "b", "duration_ms": 3000},
        {"side": "none", "reason": "tie"},
    ]
    for number, answer in enumerate(answers):
        _, message_id = ask(rater, content="the SAME opening!" if number else "the same opening")
        ok(rater.post(f"/api/pairs/{pair_of(rater, message_id)['pair_id']}/comparison", json=answer))
    with database() as session:
        rater_id = session.scalars(select(t.Rater.id)).one()
        found = figures_of(session, rater_id)
        assert found is not None
        assert (found.comparisons, found.dialogues, found.side_a, found.decided, found.undecided) == (4, 4, 2, 3, 1)
        assert found.median_s == 3.0  # of 1, 3 and 9 s; the fourth measured none
        # Wilson at 2 of 3, z² = 3.8415: centre (2 + 1.9207) / 6.8415 = 0.5731,
        # half = 1.95996 / 6.8415 · sqrt(3 · 2/9 + 0.96036) = 0.3654.
        assert found.position_bias == pytest.approx((0.2077, 0.9385), abs=1e-4)
        assert [times for _, times in repeated_openings(session, rater_id)] == [4]
        assert [(row.task, row.comparisons, row.median_s) for row in times_by_task(session, rater_id)] == [
            ("helpful", 4, 3.0)
        ]
    _, message_id = ask(rater, "model_comparison")
    answer = {"side": "a", "duration_ms": 500}
    ok(rater.post(f"/api/pairs/{pair_of(rater, message_id)['pair_id']}/comparison", json=answer))
    shown = admin.get(f"/desk/raters/{rater_id}").text
    assert re.search(r"Compare models</td><td>1</td><td>0\.5 s</td>", plain_cells(shown))
    with database() as session:
        assert figures_of(session, 999) is None


def test_agreement_is_that_of_the_newest_preference_model(
    admin: Browser, new_rater: Callable[[str], httpx.Client], database: Database
) -> None:
    for handle in ("ann", "ben"):
        new_rater(handle)
    with database() as session, session.begin():
        ids = {rater.handle: rater.id for rater in session.scalars(select(t.Rater))}
        for name, correct in (("old", 0.1), ("new", 0.75)):
            by_rater = {
                str(ids["ann"]): Accuracy(accuracy=correct, ci=(0.3, 0.95), n=4),
                str(ids["ben"]): Accuracy(accuracy=None, ci=(0.0, 1.0), n=0),
            }
            results = preference_model_results(held_out_report(by_rater=by_rater))
            artifact = add_artifact(session, name, kind="preference_model", results=results)
            assert artifact.id
    listed = plain_cells(admin.get("/desk").text)
    rows = [row.split("<td>") for row in listed.split("<tr>")[2:]]
    agreement = {
        ids[handle]: row[7].removesuffix("</td>\n") for row in rows for handle in ids if f">{handle}<" in row[1]
    }
    # The old model's 0.10 is nobody's, and Ben has no figure.
    assert agreement == {ids["ann"]: "0.75 <small>[0.30, 0.95], 4</small>", ids["ben"]: "–"}
    assert "0.75, n = 4" in admin.get(f"/desk/raters/{ids['ann']}").text
    assert "Agrees with the newest PM</dt><dd>–</dd>" in admin.get(f"/desk/raters/{ids['ben']}").text
