"""Outside models as they really are: what they refuse, how they answer, and whom a failure is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from orchestrator import cli
from orchestrator.conversations import contestants, edits, pairings
from orchestrator.conversations.contestants import Contestant
from orchestrator.errors import ApiError
from orchestrator.people.raters import create_rater, rater_by_token
from orchestrator.web.app import FeedbackConfig, create_app
from orchestrator.web.thoughts import without_thoughts
from tests.orchestrator.feedback_app import ADMIN_TOKEN
from tests.orchestrator.web.browsing import Browser
from tests.orchestrator.web.rating import ask, candidates, code_of, pair_of
from tests.outside_model import OutsideModel, as_json, completion, refused
from tests.running import running

Database = Callable[[], Session]
GOOD = completion("from outside")


@pytest.fixture
def model() -> OutsideModel:
    return OutsideModel(lambda body: GOOD)


@pytest.fixture
def model_url(model: OutsideModel) -> Iterator[str]:
    with running(model.app()) as url:
        yield f"{url}/v1"


@pytest.fixture
def big(database: Database, live: str, model_url: str) -> Contestant:
    """The outside model, which meets the live policy in the task helpful."""
    with database() as session, session.begin():
        one = contestants.add_endpoint(session, "big", model_url, "big-1")
        pairings.open_pairing(session, "helpful", one.id, contestants.get_contestant(session, live).id)
        return one


def theirs(database: Database, rater: httpx.Client, big: Contestant) -> Any:
    """Its candidate of a new pair, which must become complete."""
    _, message_id = ask(rater)
    pair_id = pair_of(rater, message_id)["pair_id"]
    return next(row for row in candidates(database, pair_id) if row.contestant_id == big.id)


def takes(*names: str, says: Callable[[str], Any] | None = None) -> Callable[[dict[str, Any]], Any]:
    """A model that takes these settings alone, and refuses the first other one in its way of saying so."""

    def answer(body: dict[str, Any]) -> Any:
        wrong = next((name for name in body if name not in ("model", "messages", *names)), None)
        if wrong is None:
            return GOOD
        return (says or (lambda name: refused(400, "Unsupported parameter", param=name)))(wrong)

    return answer


WAYS_OF_SAYING_NO = (
    lambda name: refused(400, f"Unsupported parameter: '{name}' is not supported with this model.", param=name),
    lambda name: refused(400, f"`{name}` does not support 0.7 with this model", param=None, code="unsupported_value"),
    lambda name: as_json({"detail": [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]}, 422),
    lambda name: as_json({"error": {"code": 400, "message": f"{name}: unknown field", "status": "INVALID"}}),
    lambda name: as_json({"object": "error", "message": f"unexpected keyword argument '{name}'", "code": 400}, 400),
)


@pytest.mark.parametrize("says", WAYS_OF_SAYING_NO)
def test_what_a_model_refuses_is_left_out_and_remembered(
    rater: httpx.Client, database: Database, model: OutsideModel, big: Contestant, says: Callable[[str], Any]
) -> None:
    model.answer = takes("max_completion_tokens", says=says)
    row = theirs(database, rater, big)
    assert row.text == "from outside"
    assert row.details["asked_without"] == ["max_tokens", "temperature", "top_p"]
    assert len(model.asked) == 4
    theirs(database, rater, big)
    assert model.asked[4:] == [
        {"model": "big-1", "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 128}
    ]


def test_neither_name_of_the_limit_is_needed(
    rater: httpx.Client, database: Database, model: OutsideModel, big: Contestant
) -> None:
    model.answer = takes("temperature", "top_p")
    assert theirs(database, rater, big).details["asked_without"] == ["max_tokens", "max_completion_tokens"]


def test_a_limit_that_does_not_fit_this_prompt_is_sent_with_the_next(
    rater: httpx.Client, database: Database, model: OutsideModel, big: Contestant
) -> None:
    said = "'max_tokens' or 'max_completion_tokens' is too large: this model's maximum context length is 100 tokens"
    model.answer = lambda body: refused(400, said) if {*body} & {"max_tokens", "max_completion_tokens"} else GOOD
    assert theirs(database, rater, big).details["asked_without"] == ["max_tokens", "max_completion_tokens"]
    model.answer = lambda body: GOOD
    assert "asked_without" not in theirs(database, rater, big).details
    assert model.asked[-1]["max_tokens"] == 128


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (completion([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]), "in parts"),
        (completion([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "so"]), "so"),
        (completion(None, refusal="I can't help with that."), "I can't help with that."),
        (completion("half \ud83d a pair, \ud83d\ude00 a whole one"), "half \ufffd a pair, 😀 a whole one"),
        (completion("nul\x00s"), "nul\ufffds"),
        (completion("<think>\nHe says hello.\n</think>\n\nHello!"), "Hello!"),
        (completion("Hello!", reasoning_content="He says hello."), "Hello!"),
    ],
)
def test_what_a_model_says_becomes_the_reply(
    rater: httpx.Client, database: Database, model: OutsideModel, big: Contestant, answer: Any, text: str
) -> None:
    model.answer = lambda body: answer
    assert theirs(database, rater, big).text == text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(401, "Incorrect API key"), "401 refused: Incorrect API key"),
        (refused(404, "The model `big-1` does not exist", code="model_not_found"), "does not exist"),
        (refused(403, "not in your country"), "not in your country"),
        (as_json({"error": {"message": "no credits", "code": 402}}), "402 refused: no credits"),
        (completion(None, "content_filter"), "said nothing (finish_reason 'content_filter')"),
        (completion("<think>long", "length"), "serving.max_reply_tokens"),
        (completion(None, "length", reasoning_content="long"), "thoughts and no reply"),
        (as_json({"choices": [{"error": {"message": "upstream died", "code": 502}}]}), "upstream died"),
        (as_json({"choices": []}), "something unreadable"),
        (as_json("<html>"), "something unreadable"),
    ],
)
def test_a_failure_is_told_the_operator_at_once_and_the_rater_plainly(
    config: FeedbackConfig, database: Database, live: str, model: OutsideModel, big: Contestant, answer: Any,
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("orchestrator.web.pair_sampling._OUTSIDE_PATIENCE_S", 0.2)
    with database() as session, session.begin():
        _, token = create_rater(session, "ann")
        policy = contestants.get_contestant(session, live)
        pairings.open_pairing(session, "helpful", policy.id, policy.id, weight=1e-9)
    model.answer = lambda body: answer
    with running(create_app(config)) as url, httpx.Client(base_url=url, timeout=20) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        _, message_id = ask(client)
        failed = client.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p"})
        assert code_of(failed) == (503, "replies_unavailable")
        assert "those who look after this have been told" in failed.json()["error"]["message"]
        assert "contestants" not in client.get("/health").json()
        told = client.get("/health", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()["contestants"]["big"]
        assert words in told["trouble"]
        assert told["failures"] == 1
        monkeypatch.setenv("DATABASE_URL", config.database_url)
        monkeypatch.setenv("ORCHESTRATOR_FEEDBACK_URL", url)
        monkeypatch.setenv("ORCHESTRATOR_ADMIN_TOKEN", ADMIN_TOKEN)
        assert cli.main(["contestant", "list"]) == 0
        assert words in capsys.readouterr().out
        browser = Browser(url)
        browser.client.post("/desk/sign-in", data={"token": ADMIN_TOKEN})
        assert "1 reply failed" in browser.get("/desk/pairings").text
        assert "Outside models that fail: big." in browser.get("/desk").text
        browser.client.close()
        # Others are drawn in its place while it rests; nothing is lost of what it was asked.
        other = ask(client)[1]
        assert pair_of(client, other)["a"]["complete"]
        model.answer = lambda body: GOOD
        assert "from outside" in json.dumps(pair_of(client, message_id, "p"))
        told = client.get("/health", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()["contestants"]["big"]
        assert (told["trouble"], told["failures"]) == (None, 0)


def test_a_model_that_never_answers_is_told_too(
    config: FeedbackConfig, database: Database, live: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database() as session, session.begin():
        _, token = create_rater(session, "ann")
        one = contestants.add_endpoint(session, "away", "http://127.0.0.1:1/v1", "m")
        pairings.open_pairing(session, "helpful", one.id, contestants.get_contestant(session, live).id)
    app = create_app(replace(config, sampling_timeout_s=0.5))
    with running(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        _, message_id = ask(client)
        failed = client.post(f"/api/messages/{message_id}/pairs", json={"client_key": "p"})
        assert code_of(failed) == (503, "replies_unavailable")
        told = client.get("/health", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()["contestants"]["away"]
    assert told["trouble"] == "http://127.0.0.1:1/v1: no reply within 0 s"


def test_a_model_that_is_added_is_asked_once(
    model: OutsideModel, model_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("ORCHESTRATOR_FEEDBACK_URL", raising=False)

    def added(name: str, *more: str) -> str:
        assert cli.main(["contestant", "endpoint", name, "--url", model_url, "--model", "m", "--json", *more]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)[0]["name"] == name
        return printed.err.strip()

    assert added("good") == "good: it was asked once, and answers."
    assert len(model.asked) == 1
    model.answer = takes("max_completion_tokens", "top_p")
    assert added("newer") == (
        "newer: it was asked once, and answers; it refuses max_tokens (as max_completion_tokens), temperature."
    )
    model.answer = lambda body: refused(401, "Incorrect API key")
    assert "gave no reply: " in (told := added("locked"))
    assert "Incorrect API key" in told
    asked = len(model.asked)
    monkeypatch.delenv("BIG_KEY", raising=False)
    assert "not asked, since BIG_KEY is not set here" in added("keyed", "--key-variable", "BIG_KEY")
    assert len(model.asked) == asked


def test_a_model_that_is_added_at_the_desk_is_asked_once_and_the_page_says_how_it_stands(
    model: OutsideModel, model_url: str, feedback_url: str
) -> None:
    browser = Browser(feedback_url)
    browser.send(browser.get("/desk/sign-in"), "/desk/sign-in", token=ADMIN_TOKEN)

    def added(name: str, key_variable: str = "") -> str:
        fields = {"kind": "endpoint", "name": name, "url": model_url, "model": "m", "key_variable": key_variable}
        page = browser.send(browser.get("/desk/pairings"), "/desk/contestants", **fields)
        return page.text.split(f">{name}</td>")[-1].split("</tr>")[0]

    assert "answers" in added("good")
    assert len(model.asked) == 1
    model.answer = lambda body: refused(401, "Incorrect API key")
    assert "1 reply failed" in (told := added("locked"))
    assert "Incorrect API key" in told
    asked = len(model.asked)
    assert "A_KEY_THAT_IS_NOT_SET is not set where" in added("keyed", "A_KEY_THAT_IS_NOT_SET")
    assert len(model.asked) == asked


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("plain", "plain"),
        ("  leading blanks stay", "  leading blanks stay"),
        ("<think>a</think>b", "b"),
        ("\n<THINK>\na\n</THINK>\n\n b\n", "b"),
        ("<think>a</think><think>b</think>c", "c"),
        ("<think>cut off", ""),
        ("thoughts whose beginning stood in the prompt\n</think>\n\nreply", "reply"),
        ("The mark </think> closes what <think> opens.", "The mark </think> closes what <think> opens."),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "b"),
        ("<|channel|>analysis<|message|>cut off", ""),
        ("<thinking>a</thinking>\nb", "b"),
    ],
)
def test_thoughts_are_no_part_of_a_reply(said: str, reply: str) -> None:
    assert without_thoughts(said) == reply


def test_a_reply_that_only_went_through_a_form_is_not_edited(
    rater: httpx.Client, database: Database, model: OutsideModel, big: Contestant
) -> None:
    model.answer = lambda body: completion("first line\r\nsecond line  \rthe e\u0301nd\n")
    row = theirs(database, rater, big)
    with database() as session:
        ann = rater_by_token(session, rater.headers["Authorization"].removeprefix("Bearer "))
        assert ann is not None
        for text in ("first line\nsecond line\nthe énd", " first line\r\nsecond line\r\nthe e\u0301nd\r\n"):
            with pytest.raises(ApiError) as refused_:
                edits.edit_reply(session, ann, row.pair_id, row.side, text)
            assert refused_.value.code == "nothing_edited"
        _, new = edits.edit_reply(session, ann, row.pair_id, row.side, "first line\nsecond line\nthe end")
        assert new
        # The same edit again, as another browser sends it.
        _, new = edits.edit_reply(session, ann, row.pair_id, row.side, "first line\r\nsecond line\r\nthe end\r\n")
        assert not new
