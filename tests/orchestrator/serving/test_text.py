"""Pieces of a growing reply: put together they are the decoded reply, and nothing shown is taken back."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from orchestrator.serving.text import TextStream


def bytes_to_text(ids: Sequence[int]) -> str:
    """One id is one byte."""
    return bytes(ids).decode("utf-8", "replace")


def pieces(data: bytes) -> list[str]:
    stream = TextStream(bytes_to_text)
    return [stream.push(list(data[:end]), last=end == len(data)) for end in range(1, len(data) + 1)]


def test_an_unfinished_character_waits_for_its_last_byte() -> None:
    # "a€b": the euro sign is the bytes e2 82 ac.
    assert pieces("a€b".encode()) == ["a", "", "", "€", "b"]


def test_what_stays_unfinished_is_shown_at_the_end() -> None:
    assert pieces(b"a\xe2\x82") == ["a", "", "\ufffd"]


def test_a_byte_that_fits_nowhere_is_shown_with_the_next_character() -> None:
    assert pieces(b"a\xffb") == ["a", "", "\ufffdb"]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_bytes_make_up_the_text(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("abc €😀é\n") for _ in range(60)).encode()
    noise = bytes(rng.choice(text) if rng.random() < 0.9 else rng.randrange(256) for _ in range(80))
    for data in (text, noise, text + b"\xff" * 30 + text):
        assert "".join(pieces(data)) == bytes_to_text(data)
