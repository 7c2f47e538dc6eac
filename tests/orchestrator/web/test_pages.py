"""The rater's pages over HTTP: coming in, choosing, editing; forms from elsewhere; what a click becomes in training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import ComparisonsSection
from orchestrator.data import freeze
from orchestrator.people import access
from orchestrator.people.instruction_versions import shipped
from orchestrator.people.raters import create_rater, set_status
from orchestrator.web.pages.markdown import render_markdown
from tests.db.rows import add_cycle
from tests.orchestrator.web.browsing import Browser, pair_id_of
from tests.orchestrator.web.stand_in import StandIn
from tests.running import add_artifact, deploy

Database = Callable[[], Session]


def invitation(database: Database, **limits: object) -> str:
    """The path of a new invitation link."""
    with database() as session, session.begin():
        return f"/join/{access.create_invitation(session, 'test', **limits)[1]}"  # type: ignore[arg-type]


def texts_of(session: Session) -> dict[str, str]:
    """The replies of the only pair, by side."""
    return {row.side: row.text for row in session.execute(select(t.Candidate.side, t.Candidate.text))}


@pytest.fixture
def new_browser(feedback_url: str) -> Iterator[Callable[[], Browser]]:
    browsers: list[Browser] = []

    def make() -> Browser:
        browsers.append(Browser(feedback_url))
        return browsers[-1]

    yield make
    for browser in browsers:
        browser.client.close()


@pytest.fixture
def rater_browser(new_browser: Callable[[], Browser], database: Database, live: str) -> Browser:
    """A browser whose rater has joined by an invitation, while a policy is live."""
    browser = new_browser()
    link = invitation(database)
    page = browser.send(browser.get(link), link)
    assert "Your tasks" in page.text
    return browser


def test_an_invitation_makes_a_rater_who_stays_signed_in(rater_browser: Browser, database: Database) -> None:
    assert "Your tasks" in rater_browser.get("/").text
    with database() as session:
        rater = session.scalars(select(t.Rater)).one()
        assert (rater.kind, rater.status, rater.token_digest) == ("human", "normal", None)
        assert session.scalars(select(t.InvitationUse.rater_id)).all() == [rater.id]
    cookie = next(iter(rater_browser.client.cookies.jar))
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "lax"


def test_opening_the_link_alone_makes_nobody_a_rater(new_browser: Callable[[], Browser], database: Database) -> None:
    link = invitation(database)
    assert new_browser().get(link).status_code == 200
    with database() as session:
        assert session.scalar(select(func.count()).select_from(t.Rater)) == 0


def test_the_last_place_of_an_invitation_goes_to_one_of_many(
    new_browser: Callable[[], Browser], database: Database
) -> None:
    link = invitation(database, max_uses=2)
    browsers = [new_browser() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(lambda browser: browser.client.post(link).status_code, browsers))
    assert statuses == [200, 200, 410, 410, 410, 410]


def test_an_invitation_that_is_over_says_so(new_browser: Callable[[], Browser], database: Database) -> None:
    browser = new_browser()
    expired = browser.get(invitation(database, valid_for=timedelta(seconds=-1)))
    assert (expired.status_code, "Ask for a new one" in expired.text) == (410, True)
    unknown = browser.get("/join/nonsense")
    assert (unknown.status_code, "not known" in unknown.text) == (404, True)


def test_a_token_signs_in_and_signing_out_ends_the_session(
    new_browser: Callable[[], Browser], database: Database, live: str
) -> None:
    with database() as session, session.begin():
        _, token = create_rater(session, "ann")
    browser = new_browser()
    assert browser.get("/").status_code == 401
    refused = browser.client.post("/sign-in", data={"token": "wrong"})
    assert (refused.status_code, "belongs to no rater" in refused.text) == (401, True)
    home = browser.client.post("/sign-in", data={"token": f" {token}\n"})
    assert "ann" in home.text
    cookies = dict(browser.client.cookies)
    browser.send(home, "/sign-out")
    thief = new_browser()
    thief.client.cookies.update(cookies)
    assert thief.get("/").status_code == 401


def test_a_cookie_planted_before_signing_in_is_worth_nothing(
    new_browser: Callable[[], Browser], database: Database, live: str
) -> None:
    victim = new_browser()
    victim.client.cookies.set("orchestrator_session", "planted")
    link = invitation(database)
    victim.send(victim.get(link), link)
    attacker = new_browser()
    attacker.client.cookies.set("orchestrator_session", "planted")
    assert attacker.get("/").status_code == 401


def test_instructions_come_first_and_consent_is_kept(rater_browser: Browser, database: Database) -> None:
    told = rater_browser.get("/tasks/helpful/helpful")
    assert "How it goes" in told.text
    refused = rater_browser.send(told, "/tasks/helpful/helpful")
    assert "I have read this" in refused.text  # shown again, nothing begun
    page = rater_browser.begin()
    assert re.fullmatch(r"/dialogues/\d+", page.url.path)
    with database() as session:
        assert session.scalars(select(t.Consent.instruction_version)).all() == [shipped("helpful").version]
        assert session.scalar(select(func.count()).select_from(t.Dialogue)) == 1
    assert "I have read this" not in rater_browser.get("/tasks/helpful/helpful").text


def test_the_same_form_sent_twice_is_one_act(rater_browser: Browser, database: Database) -> None:
    told = rater_browser.get("/tasks/helpful/helpful")
    agree = {"agree": shipped("helpful").version}
    first, second = (rater_browser.send(told, "/tasks/helpful/helpful", **agree) for _ in range(2))
    assert first.url == second.url
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda _: rater_browser.send(first, "/messages", content="hello"), range(4)))
    assert {page.status_code for page in pages} == {200}
    page = rater_browser.write(first, "hello")
    for _ in range(3):
        assert rater_browser.send(page, "/comparison", choice="b2").status_code == 200
    with database() as session:
        counts = [
            session.scalar(select(func.count()).select_from(table))
            for table in (t.Dialogue, t.Message, t.Pair, t.Comparison)
        ]
    assert counts == [1, 2, 1, 1]  # two messages: the rater's and the reply that it goes on from


def test_a_second_tab_with_another_choice_is_told_that_the_first_stands(rater_browser: Browser) -> None:
    page = rater_browser.write(rater_browser.begin(), "hello")
    rater_browser.send(page, "/comparison", choice="a4")
    late = rater_browser.send(page, "/comparison", choice="b4")
    assert (late.status_code, "the first one stands" in late.text) == (409, True)


def test_a_stale_tab_shows_the_page_as_it_is_now(rater_browser: Browser) -> None:
    stale = rater_browser.write(rater_browser.begin(), "hello")
    now = rater_browser.send(stale, "/comparison", choice="a4")
    late = rater_browser.send(stale, "/edit", side="a", content="a better one")
    assert (late.status_code, "that choice stands" in late.text) == (409, True)
    # The next message can be written on it.
    assert "data-pair" not in late.text
    further = rater_browser.write(late, "and then")
    assert "data-pair" in further.text
    rater_browser.send(further, "/end")
    for action, values in (("/messages", {"content": "too late"}), ("/comparison", {"choice": "a1"})):
        late = rater_browser.send(now if action == "/messages" else further, action, **values)
        assert late.status_code == 409, late.text
        assert "This conversation has ended" in late.text
        assert re.search(r'role="alert" id="problem">[^<]', late.text)


def test_two_replies_that_say_the_same_are_offered_and_stored_as_such(
    rater_browser: Browser, stand_in: StandIn, database: Database
) -> None:
    stand_in.alike = True
    page = rater_browser.write(rater_browser.begin(), "hello")
    assert "Both replies are the same." in page.text
    assert ">They are the same</button>" in page.text
    assert '<div class="scale" hidden>' in page.text
    replies = rater_browser.client.get(f"/pairs/{pair_id_of(page)}/replies").json()
    assert replies["alike"] is True
    page = rater_browser.send(page, "/comparison", none="yes")
    stand_in.alike = False
    page = rater_browser.write(page, "and then")
    assert "I can’t tell</button>" in page.text
    assert "the same" not in page.text
    rater_browser.send(page, "/comparison", none="yes")
    with database() as session:
        stored = session.execute(select(t.Comparison.side, t.Comparison.reason).order_by(t.Comparison.id)).all()
    assert [tuple(row) for row in stored] == [("none", "tie"), ("none", "cant_tell")]


def test_the_dialogue_goes_on_from_the_choice(rater_browser: Browser, database: Database) -> None:
    page = rater_browser.write(rater_browser.begin(), "hello")
    pair_id = pair_id_of(page)
    page = rater_browser.send(page, "/comparison", choice="b3", duration_ms="1234")
    with database() as session:
        texts = texts_of(session)
        comparison = session.scalars(select(t.Comparison)).one()
        assert (comparison.pair_id, comparison.side, comparison.strength) == (pair_id, "b", 3)
        assert comparison.duration_ms == 1234
    assert texts["b"] in page.text
    assert texts["a"] not in page.text
    page = rater_browser.write(page, "and then")
    page = rater_browser.send(page, "/comparison", none="yes")
    with database() as session:
        last = session.scalars(select(t.Comparison).order_by(t.Comparison.id.desc())).first()
        assert last is not None
        assert (last.side, last.reason, last.strength) == ("none", "cant_tell", None)
    ended = rater_browser.send(page, "/end")
    assert "has ended; 2 choices made" in ended.text
    home = rater_browser.get("/").text
    assert re.search(r"last 24 hours</dt><dd>2</dd>", home)


def test_a_choice_needs_both_replies(rater_browser: Browser, stand_in: StandIn) -> None:
    stand_in.hold()
    page = rater_browser.send(rater_browser.begin(), "/messages", content="hello")
    assert "being written" in page.text
    early = rater_browser.send(page, "/comparison", choice="a4")
    assert (early.status_code, "not complete" in early.text) == (409, True)
    stand_in.release()


@pytest.mark.parametrize("choice", ["", "a5", "c1", "b0", "a44", "4a"])
def test_no_choice_is_an_error_that_says_what_to_do(rater_browser: Browser, choice: str) -> None:
    page = rater_browser.write(rater_browser.begin(), "hello")
    refused = rater_browser.send(page, "/comparison", choice=choice)
    assert (refused.status_code, "Choose a reply" in refused.text) == (422, True)


def test_an_empty_or_endless_message_is_refused_with_a_reason(rater_browser: Browser) -> None:
    page = rater_browser.begin()
    assert "is empty" in rater_browser.send(page, "/messages", content="  \r\n ").text
    assert rater_browser.send(page, "/messages", content="x" * 20_001).status_code == 422


def test_a_dialogue_that_no_policy_can_answer_says_so_and_keeps_the_message(
    rater_browser: Browser, stand_in: StandIn
) -> None:
    page = rater_browser.begin()
    stand_in.refusals = [(400, "context_length_exceeded")] * 10  # each look at the page asks again
    page = rater_browser.send(page, "/messages", content="hello")
    with rater_browser.client.stream("GET", f"/pairs/{pair_id_of(page)}/stream") as events:
        assert "dialogue_too_long" in events.read().decode()
    assert "hello" in rater_browser.get(page.url.path).text


def test_a_message_is_kept_while_no_policy_is_live(rater_browser: Browser, database: Database) -> None:
    page = rater_browser.begin()
    with database() as session, session.begin():
        session.execute(update(t.Deployment).values(ended_at=func.now()))
    away = rater_browser.send(page, "/messages", content="hello")
    assert (away.status_code, "No policy is live" in away.text) == (503, True)
    kept = rater_browser.get(page.url.path)
    assert "hello" in kept.text
    assert "no replies yet" in kept.text
    with database() as session, session.begin():
        deploy(session, add_artifact(session, "next"))
    assert pair_id_of(rater_browser.send(kept, "/pairs"))


@pytest.mark.parametrize("task", ["red_team", "red_team_choose_best"])
def test_one_click_leads_back_to_the_helpful_task(rater_browser: Browser, database: Database, task: str) -> None:
    rater_browser.begin("helpful")
    page = rater_browser.begin(task)
    assert "upsetting" in page.text
    page = rater_browser.send(page, "/leave")
    assert "Get help" in page.text
    with database() as session:
        dialogues = session.execute(select(t.Dialogue.task, t.Dialogue.ended_at.is_(None)).order_by(t.Dialogue.id))
        assert [tuple(row) for row in dialogues] == [("helpful", True), (task, False), ("helpful", True)]


def training_example(engine: Engine, out: Path) -> dict[str, str] | None:
    """The one comparison as the preference model gets it; None where it gets none."""
    with Session(engine) as session, session.begin():
        freeze_id = freeze.freeze(session, add_cycle(session).id).id
    out.mkdir()
    freeze.build_comparison_set(engine, freeze_id, ComparisonsSection(), None, out)
    manifest = json.loads((out / "manifest.json").read_text())
    lines = [line for shard in manifest["shards"] for line in (out / shard["file"]).read_text().splitlines()]
    if not lines:
        return None
    (line,) = lines
    record = json.loads(line)
    return {
        "question": record["question"],
        "better": record["better"][0]["content"],
        "worse": record["worse"][0]["content"],
    }


# What was clicked, and which side's reply is then the better one in training.
@pytest.mark.parametrize(
    ("task", "question", "choice", "better", "trained_as"),
    [
        ("helpful", "helpful", "a4", "a", "helpful"),
        ("helpful", "helpful", "b2", "b", "helpful"),
        ("red_team_choose_best", "harmless", "a3", "a", "harmless"),
        ("red_team_choose_best", "harmless", "b4", "b", "harmless"),
        # The rater picks the more harmful reply: the other one is what the model shall learn.
        ("red_team", "more_harmful", "a4", "b", "harmless"),
        ("red_team", "more_harmful", "b2", "a", "harmless"),
        ("model_comparison", "helpful", "a4", None, None),
        ("model_comparison", "harmless", "b4", None, None),
    ],
)
def test_from_the_click_to_the_training_example(
    rater_browser: Browser,
    database: Database,
    engine: Engine,
    tmp_path: Path,
    task: str,
    question: str,
    choice: str,
    better: str | None,
    trained_as: str | None,
) -> None:
    page = rater_browser.write(rater_browser.begin(task, question), "hello")
    page = rater_browser.send(page, "/comparison", choice=choice)
    with database() as session:
        texts = texts_of(session)
    assert texts[choice[0]] in page.text  # the dialogue goes on from the pick, whatever is asked
    expected = None
    if better is not None and trained_as is not None:
        worse = {"a": "b", "b": "a"}[better]
        expected = {"question": trained_as, "better": texts[better], "worse": texts[worse]}
    assert training_example(engine, tmp_path / "set") == expected


def test_an_edited_reply_is_better_than_its_original(
    rater_browser: Browser, database: Database, engine: Engine, tmp_path: Path
) -> None:
    page = rater_browser.write(rater_browser.begin(), "hello")
    pair_id = pair_id_of(page)
    with database() as session:
        texts = texts_of(session)
    same = rater_browser.send(page, "/edit", side="b", content=f" {texts['b']}")
    assert (same.status_code, "equals the original" in same.text) == (422, True)
    for _ in range(2):  # a double click, the second with other line ends
        after = rater_browser.send(page, "/edit", side="b", content="A better one.\r\nIn two lines.")
        assert "A better one." in after.text
    other = rater_browser.send(page, "/edit", side="a", content="Another one.")
    assert (other.status_code, "already" in other.text) == (409, True)
    chosen = rater_browser.send(page, "/comparison", choice="a1")
    assert (chosen.status_code, "that stands" in chosen.text) == (409, True)
    with database() as session:
        edit = session.scalars(select(t.Pair).where(t.Pair.edit_of_id == pair_id)).one()
        sides = {c.contestant: c for c in session.scalars(select(t.Candidate).where(t.Candidate.pair_id == edit.id))}
        assert sides[None].snapshot_id is not None
        assert sides["edit"].snapshot_id is None
    assert training_example(engine, tmp_path / "set") == {
        "question": "helpful",
        "better": "A better one.\nIn two lines.",
        "worse": texts["b"],
    }


def test_where_the_more_harmful_is_picked_nothing_is_edited(rater_browser: Browser) -> None:
    page = rater_browser.write(rater_browser.begin("red_team"), "hello")
    csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert csrf is not None
    form = {"csrf": csrf.group(1), "side": "a", "content": "worse"}
    refused = rater_browser.client.post(f"/pairs/{pair_id_of(page)}/edit", data=form)
    assert (refused.status_code, "compared, not edited" in refused.text) == (409, True)


def test_forms_of_other_sites_and_other_sessions_are_refused(
    rater_browser: Browser, new_browser: Callable[[], Browser], database: Database
) -> None:
    page = rater_browser.begin()
    action = f"{page.url.path}/messages"
    csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert csrf is not None
    good = {"csrf": csrf.group(1), "key": "k", "content": "hello", "parent_id": ""}
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert rater_browser.client.post(action, data=good, headers=elsewhere).status_code == 403
    old = {"Sec-Fetch-Site": "", "Origin": "https://evil.example"}
    client = rater_browser.client
    del client.headers["Sec-Fetch-Site"]
    assert client.post(action, data=good, headers={"Origin": old["Origin"]}).status_code == 403
    for forged in (good | {"csrf": "0" * 64}, {k: v for k, v in good.items() if k != "csrf"}):
        assert client.post(action, data=forged).status_code == 403
    other = new_browser()
    link = invitation(database)
    other.send(other.get(link), link)
    assert other.client.post(action, data=good).status_code == 403  # a token of another session
    with database() as session:
        assert session.scalar(select(func.count()).select_from(t.Message)) == 0
    assert client.post(action, data=good).status_code == 200


def test_another_rater_finds_nothing(
    rater_browser: Browser, new_browser: Callable[[], Browser], database: Database
) -> None:
    page = rater_browser.write(rater_browser.begin(), "private")
    pair_id = pair_id_of(page)
    other = new_browser()
    link = invitation(database)
    home = other.send(other.get(link), link)
    csrf = re.search(r'name="csrf" value="(\w+)"', home.text)
    assert csrf is not None
    for path in (page.url.path, f"/pairs/{pair_id}/stream", f"/pairs/{pair_id}/replies"):
        assert other.get(path).status_code == 404
        assert "private" not in other.get(path).text
    for path in (f"{page.url.path}/messages", f"{page.url.path}/end", f"/pairs/{pair_id}/comparison"):
        form = {"csrf": csrf.group(1), "key": "k", "content": "x", "choice": "a1"}
        assert other.client.post(path, data=form).status_code == 404


def test_a_banned_rater_is_out_at_once(rater_browser: Browser, database: Database) -> None:
    page = rater_browser.begin()
    with database() as session, session.begin():
        set_status(session, session.scalars(select(t.Rater.handle)).one(), "banned")
    assert rater_browser.get("/").status_code == 403
    assert rater_browser.send(page, "/messages", content="hello").status_code == 403


def test_every_page_forbids_what_it_does_not_need(rater_browser: Browser) -> None:
    dialogue = rater_browser.write(rater_browser.begin(), "hello")
    for page in (rater_browser.get("/"), dialogue, rater_browser.get("/dialogues/999"), rater_browser.get("/nowhere")):
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        assert not re.search(r"\son\w+=|style=|javascript:|<script>", page.text)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt&colon;alert(1))",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "![x](https://evil.example/pixel.png)",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>body{display:none}</style>",
    "<form action=https://evil.example><button>Choose</button></form>",
    '[a](https://a.example "onmouseover=alert(1)")',
    "<https://a.example/\"onmouseover='alert(1)'>",
    "`</code><script>alert(1)</script>`",
    "```\n</pre><script>alert(1)</script>\n```",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<div id=choice name=csrf>clobbered</div>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_reply_smuggles_in_is_text(text: str) -> None:
    html = str(render_markdown(text))
    tags = re.findall(r"<\s*([a-zA-Z]+)([^>]*)>", html)
    assert {tag for tag, _ in tags} <= {"p", "a", "em", "code", "pre"}
    for tag, attributes in tags:
        names = set(re.findall(r"([\w-]+)=\"", attributes))
        assert names <= ({"href", "title", "target", "rel"} if tag == "a" else set())
        assert not re.search(r"href=\"(?!https?:|mailto:)", attributes)


def test_markdown_is_readable() -> None:
    html = str(render_markdown("# Plan\n\n1. **one**\n2. `two < three`\n\n| a | b |\n|-|-|\n| 1 | 2 |\n"))
    assert "<h3>Plan</h3>" in html  # below the page's own headings
    assert "<li><strong>one</strong></li>" in html
    assert "<code>two &lt; three</code>" in html
    assert "<td>1</td>" in html
    assert str(render_markdown("[" * 70_000)).startswith("<pre>[[")  # too long to parse


def entry(platform: str, person: str = "p1", submission: str = "s1", study: str = "study-1") -> str:
    names = {"prolific": "PROLIFIC_PID={}&SESSION_ID={}&STUDY_ID={}", "mturk": "workerId={}&assignmentId={}&hitId={}"}
    return f"/enter/{platform}?{names[platform].format(person, submission, study)}"


@pytest.mark.parametrize("platform", ["prolific", "mturk"])
def test_who_comes_from_a_platform_gets_the_code_after_the_last_choice(
    new_browser: Callable[[], Browser], database: Database, live: str, platform: str
) -> None:
    with database() as session, session.begin():
        access.create_study(session, platform, "study-1", "CODE-77", 2)
    browser = new_browser()
    home = browser.client.post(entry(platform))
    assert "0 of 2 choices" in home.text
    page = browser.begin()
    for _ in range(2):
        assert "CODE-77" not in browser.get("/").text
        page = browser.send(browser.write(page, "hello"), "/comparison", choice="a4")
    assert "CODE-77" in browser.get("/").text
    again = new_browser()  # the same person on another device
    assert "CODE-77" in again.client.post(entry(platform)).text
    second = new_browser()
    assert "0 of 2 choices" in second.client.post(entry(platform, submission="s2")).text
    with database() as session:
        rater = session.scalars(select(t.Rater)).one()
        assert (rater.handle, rater.platform) == (f"{platform}/p1", platform)
        completed = session.execute(select(t.Visit.completed_at.is_not(None)).order_by(t.Visit.id)).scalars().all()
        assert completed == [True, False]


def test_links_of_platforms_that_lead_nowhere_say_so(
    new_browser: Callable[[], Browser], database: Database, live: str
) -> None:
    browser = new_browser()
    assert browser.client.post(entry("prolific")).status_code == 404  # no such study
    assert browser.get("/enter/elsewhere").status_code == 404
    incomplete = browser.get("/enter/prolific?PROLIFIC_PID=p1")
    assert (incomplete.status_code, "STUDY_ID, SESSION_ID" in incomplete.text) == (422, True)
    preview = browser.get(entry("mturk", submission="ASSIGNMENT_ID_NOT_AVAILABLE"))
    assert preview.status_code == 422
    with database() as session, session.begin():
        access.create_study(session, "prolific", "study-1", "CODE", 1)
    browser.client.post(entry("prolific"))
    stolen = new_browser().client.post(entry("prolific", person="p2"))
    assert stolen.status_code == 409  # another person's submission
    with database() as session, session.begin():
        access.end_study(session, "prolific", "study-1")
    assert new_browser().client.post(entry("prolific", person="p3", submission="s3")).status_code == 410
    assert new_browser().client.post(entry("prolific")).status_code == 200  # who is in may finish


def test_a_pages_script_gets_json(rater_browser: Browser) -> None:
    page = rater_browser.begin()
    rater_browser.client.headers["Accept"] = "application/json"
    told = rater_browser.send(page, "/messages", content="hello")
    assert told.json() == {"go": page.url.path}
    refused = rater_browser.send(page, "/messages", content=" ")
    assert refused.json()["error"]["code"] == "unusable_text"
    rater_browser.client.cookies.clear()
    assert rater_browser.send(page, "/messages", content="x").json()["error"]["code"] == "no_session"


def test_errors_are_pages_for_people_and_json_for_programs(feedback_url: str, live: str) -> None:
    page = httpx.get(f"{feedback_url}/nowhere", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    program = httpx.get(f"{feedback_url}/api/pairs/1", headers={"Accept": "text/html"})
    assert program.json()["error"]["code"] == "no_token"
