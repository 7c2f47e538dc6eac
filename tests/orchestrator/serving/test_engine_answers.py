"""What engines of others really answer: any characters, streams of any legal form, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.responses import Response

from tests.orchestrator.serving.tiny_policies import Serve, Served
from tests.outside_model import OutsideModel, as_json, completion, event_of, refused, stream
from tests.running import running

SAID = "one\u2028two\u2029three\u0085four\x0bfive größer 😀"


@pytest.fixture
def model(live: str) -> OutsideModel:
    """The engine: it serves the live snapshot under its digest."""
    return OutsideModel(lambda body: stream([]), [live])


@pytest.fixture
def front(serve: Serve, model: OutsideModel, live: str) -> Iterator[Served]:
    """The policy server before it."""
    with running(model.app()) as url, serve(engines=(f"{url}/v1",)) as server:
        server.wait_for(lambda health: health["live"] == live)
        yield server


def said(front: Served) -> list[tuple[str, str]]:
    """Text and how it ended, whole and streamed."""
    whole = front.chat(seed=1)
    assert whole.status_code == 200, whole.text
    choice = whole.json()["choices"][0]
    streamed = front.chat(seed=1, stream=True)
    assert streamed.status_code == 200, streamed.text
    lines = streamed.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    choices = [json.loads(line[6:])["choices"][0] for line in lines[:-2]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return [(choice["message"]["content"], choice["finish_reason"]), (text, *ends)]


def events(*pieces: str, finish: str | None = "stop", escaped: bool = False) -> list[str]:
    """The events of a reply that comes in these pieces."""
    head = event_of({"role": "assistant", "content": ""})
    return [
        head,
        *(event_of({"content": piece}, escaped=escaped) for piece in pieces),
        *([event_of({}, finish)] if finish else []),
        "[DONE]",
    ]


def test_streams_of_any_form_and_texts_of_any_characters_are_the_reply(front: Served, model: OutsideModel) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": SAID}]
    last_without_end = stream(events(SAID)[:-1]).body.removesuffix(b"\n\n")
    for answer in (
        stream(events(SAID)),
        stream(events(SAID[:9], SAID[9:])),
        stream(events(SAID), before="data:"),
        stream(events(SAID), end="\r"),
        stream(events(SAID), end="\r\n"),
        stream(events(SAID), before=": PROCESSING\n\nevent: chunk\ndata: "),
        # A pair of surrogates that the engine cut in two.
        stream(events(SAID[:-1], "\ud83d", "\ude00", escaped=True)),
        # It says that it is done, and not how.
        stream(events(SAID, finish=None)),
        Response(last_without_end, media_type="text/event-stream"),
        Response(stream(events(SAID)).body, media_type="text/plain"),
        Response(b"\xef\xbb\xbf" + stream(events(SAID)).body, media_type="text/event-stream"),
        stream([json.dumps({"choices": [], "prompt_filter_results": []}), *events(SAID)]),
        stream([event_of({"content": parts}), event_of({}, "stop")]),
        # It does not stream at all.
        completion(SAID),
    ):
        model.answer = lambda body, answer=answer: answer  # type: ignore[misc]
        assert said(front) == [(SAID, "stop"), (SAID, "stop")], answer.body


def test_half_a_character_is_replaced(front: Served, model: OutsideModel) -> None:
    model.answer = lambda body: stream(events("a\ud83d", "b\ude00c", "\ud83d", escaped=True))
    expected = ("a\ufffdb\ufffdc\ufffd", "stop")
    assert said(front) == [expected, expected]


@pytest.mark.parametrize("streamed", [False, True])
def test_what_an_engine_refuses_is_refused_with_its_status_and_words(
    front: Served, model: OutsideModel, streamed: bool
) -> None:
    for answer, status, code, words in (
        (
            refused(400, "by the policy", code="content_filter"),
            400,
            "content_filter",
            "by the policy",
        ),
        (as_json({"object": "error", "message": "no such", "code": 404}, 404), 404, "refused", "no such"),
        (as_json({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, 422), 422, "refused", "too many"),
        (Response("Payload Too Large", 413), 413, "refused", "Payload Too Large"),
        (as_json({"error": "not for you"}, 403), 403, "refused", "not for you"),
        (refused(401, "Invalid key", code="invalid_api_key"), 401, "invalid_api_key", "Invalid key"),
        (refused(429, "slow down", code="rate_limited"), 429, "rate_limited", "slow down"),
        (
            refused(400, "This model's maximum context length is 8 tokens.", code=400),
            400,
            "context_length_exceeded",
            "maximum context length is 8",
        ),
        # Said under a status that says yes, or in a stream.
        (refused(200, "no tools here", code=400), 400, "refused", "no tools here"),
        (stream([json.dumps({"error": {"message": "bad seed", "code": 422}})]), 422, "refused", "bad seed"),
        (stream([json.dumps({"error": {"message": "too busy", "code": 503}})]), 503, "decoding_failed", "too busy"),
        (as_json({"error": {"message": "out of memory"}}, 500), 503, "decoding_failed", "500 out of memory"),
    ):
        model.answer = lambda body, answer=answer: answer  # type: ignore[misc]
        told = front.chat(stream=streamed)
        error = told.json()["error"]
        assert (told.status_code, error["code"]) == (status, code)
        assert words in error["message"]
        assert ("Retry-After" in told.headers) == (status == 503)
    model.answer = lambda body: as_json({"error": {"message": "later"}}, 429, {"Retry-After": "7"})
    assert front.chat(stream=streamed).headers["Retry-After"] == "7"


def test_a_refusal_in_mid_stream_is_an_event(front: Served, model: OutsideModel) -> None:
    late = json.dumps({"error": {"message": "filtered", "code": "content_filter", "type": "invalid_request_error"}})
    model.answer = lambda body: stream([event_of({"content": "one"}), late])
    streamed = front.chat(stream=True)
    # Both came at once here, so that the refusal may have been known before the first word was sent.
    told = streamed.json() if streamed.status_code == 400 else json.loads(streamed.text.strip().split("\n\n")[-1][6:])
    assert told["error"]["code"] == "content_filter"
    assert "filtered" in told["error"]["message"]


def test_a_stream_that_breaks_off_is_no_reply(front: Served, model: OutsideModel) -> None:
    for answer in (stream([event_of({"content": "one"})]), stream([event_of({"content": "one"}, "abort")])):
        model.answer = lambda body, answer=answer: answer  # type: ignore[misc]
        refused_ = front.chat()
        assert (refused_.status_code, refused_.json()["error"]["code"]) == (503, "decoding_failed")
        assert "ended before the reply was complete" in refused_.json()["error"]["message"]
