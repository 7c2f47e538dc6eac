"""Server-sent events after the standard: whatever a server may legally write comes out as the data it meant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.http_shared.server_sent_events import data_of_events


class Pieces(httpx.AsyncByteStream):
    """A body that arrives in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def read(*pieces: bytes, content_type: str = "text/event-stream") -> list[str]:
    async def all_data() -> list[str]:
        response = httpx.Response(200, headers={"Content-Type": content_type}, stream=Pieces(list(pieces)))
        return [data async for data in data_of_events(response)]

    return asyncio.run(all_data())


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("data: one\u2028two\u2029three\u0085four\n\n", ["one\u2028two\u2029three\u0085four"]),
        ("data: one\x0btwo\x0cthree\x1cfour\n\n", ["one\x0btwo\x0cthree\x1cfour"]),
        ("data:no blank\n\n", ["no blank"]),
        ("data:  two blanks\n\n", [" two blanks"]),
        ("data: cr alone\r\rdata: again\r\r", ["cr alone", "again"]),
        ("data: crlf\r\n\r\ndata: again\r\n\r\n", ["crlf", "again"]),
        (": a comment\n\ndata: x\n: another\n\n:\n\n", ["x"]),
        ("data: first\ndata: second\ndata\ndata:\n\n", ["first\nsecond\n\n"]),
        ("event: done\nid: 7\nretry: 100\ndata: named\n\n", ["named"]),
        ("id: 7\n\nevent: ping\n\ndata\n\ndata: x\n\n", ["x"]),
        ("data: never ended", ["never ended"]),
        ("data: line ended\n", ["line ended"]),
        ("data: cr ended\r", ["cr ended"]),
        ("\ufeffdata: after a mark\n\n", ["after a mark"]),
        ("Data: fields have their case\ndatax: y\n\n", []),
        ("", []),
    ],
)
def test_events_are_read_after_the_standard(sent: str, expected: list[str]) -> None:
    assert read(sent.encode()) == expected
    assert read(*(bytes([byte]) for byte in sent.encode())) == expected


def test_the_text_is_utf_8_whatever_a_header_says() -> None:
    for content_type in ("text/event-stream; charset=latin-1", "text/plain", "TEXT/EVENT-STREAM;charset=UTF-8"):
        assert read("data: größer\n\n".encode(), content_type=content_type) == ["größer"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert read(b"data: a\xffb\n\ndata: c\n\n") == ["a\ufffdb", "c"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))
BESIDE = st.sampled_from([":", ": keep alive", "event: message", "id: 1", "retry: 10", "other", "other: field"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    """A stream as a server may write it, cut anywhere, and the data of its events."""
    end = draw(st.sampled_from(["\n", "\r", "\r\n"]))
    lines, expected = [], []
    for values in draw(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=4)):
        for value in values:
            lines += draw(st.lists(BESIDE, max_size=2))
            # Without a blank of its own, one that begins the value would be taken for it.
            blank = " " if value.startswith(" ") or draw(st.booleans()) else ""
            lines.append(f"data:{blank}{value}")
        lines.append("")
        expected += ["\n".join(values)] if "\n".join(values) else []
    sent = draw(st.sampled_from(["", "\ufeff"])) + "".join(line + end for line in lines)
    if draw(st.booleans()):
        sent = sent.removesuffix(end)
    whole = sent.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)], expected


@settings(deadline=None)
@given(streams())
def test_what_a_server_may_write_comes_out_as_it_was_meant(stream: tuple[list[bytes], list[str]]) -> None:
    pieces, expected = stream
    assert read(*pieces) == expected
