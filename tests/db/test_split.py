"""The split: stable, by dialogue, the same in Python and in SQL."""

from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.split import held_out_threshold, is_held_out, normalised, split_key


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("Hi,  there!", "hi there"),
        ("HI\n\tTHERE", "hi there"),
        ("hi-there", "hi there"),
        ("snake_case", "snake case"),
        ("Straße", "strasse"),
        ("  Что   делать? ", "что делать"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_an_opening_is_the_same_however_it_is_written(text: str, same_as: str) -> None:
    assert normalised(text) == same_as
    assert split_key(text) == hashlib.sha256(same_as.encode()).hexdigest()


def test_different_openings_stay_different() -> None:
    assert len({split_key(text) for text in ("?", "!", "", "a", "a b", "ab")}) == 6


def test_the_boundary_is_exact() -> None:
    # 0.05 * 2^32 = 214748364.8, so keys below 214748364 = 0x0ccccccc are held out.
    assert held_out_threshold(0.05) == 0x0CCCCCCC
    assert is_held_out("0ccccccb" + "f" * 56, 0.05)
    assert not is_held_out("0ccccccc" + "0" * 56, 0.05)


def test_a_larger_fraction_only_adds_dialogues() -> None:
    keys = [split_key(str(number)) for number in range(2000)]
    small, large = ({key for key in keys if is_held_out(key, fraction)} for fraction in (0.05, 0.2))
    assert small < large
    # Binomial(2000, 0.05): mean 100, standard deviation 9.7; four of them on either side.
    assert 61 < len(small) < 139


def test_a_fraction_is_a_share() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        held_out_threshold(1.5)


def test_sql_reads_the_key_as_python_does(session: Session) -> None:
    keys = [split_key(str(number)) for number in range(200)]
    query = text("select ('x' || left(key, 8))::bit(32)::bigint from unnest(cast(:keys as text[])) key")
    assert list(session.scalars(query, {"keys": keys})) == [int(key[:8], 16) for key in keys]
