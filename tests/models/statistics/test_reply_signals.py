"""Repetition, stock replies and refusals, by hand."""

import pytest

from models.statistics.reply_signals import (
    REFUSALS,
    collapse_signals,
    distinct_ngrams,
    duplicates,
    most_frequent,
    most_frequent_opening,
    refusal_share,
    refuses,
    repeated_ngrams,
)

EXACT = 1e-12


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [
        ([1, 2, 1, 2, 1, 2], 2, 0.6),  # 12 21 12 21 12: 2 distinct of 5
        ([1, 2, 3, 4, 5], 2, 0.0),
        ([7, 7, 7, 7, 7, 7], 4, 2 / 3),  # three times the same four: 1 distinct of 3
        ([1, 2, 3], 4, 0.0),  # no n-gram at all
        ([], 4, 0.0),
    ],
)
def test_repeated_ngrams_are_those_said_before(ids, n, share):
    assert repeated_ngrams(ids, n) == pytest.approx(share, abs=EXACT)


def test_distinct_ngrams_are_counted_over_all_replies():
    texts = ["The cat sat", "the cat ran"]
    assert distinct_ngrams(texts, 1) == pytest.approx(4 / 6, abs=EXACT)  # the cat sat ran, of six words
    assert distinct_ngrams(texts, 2) == pytest.approx(3 / 4, abs=EXACT)  # "the cat" twice
    assert distinct_ngrams(texts[::-1], 2) == distinct_ngrams(texts, 2)
    assert distinct_ngrams(["one"], 2) is None


def test_duplicates_ignore_case_and_white_space():
    assert duplicates(["Yes.", " yes.", "YES. ", "No."]) == pytest.approx(0.5, abs=EXACT)  # two say what one said
    assert duplicates(["a", "b"]) == 0.0
    assert duplicates([]) == 0.0


def test_most_frequent_reply_and_opening():
    assert most_frequent(["No.", "Yes.", "yes."]) == ("Yes.", 2 / 3)
    openings = ["I am sorry but I can't", "I am sorry but I won't", "Sure."]
    assert most_frequent_opening(openings) == ("I am sorry but I", 2 / 3)
    assert most_frequent(["b", "a"]) == ("b", 0.5)  # the first of equals
    with pytest.raises(ValueError, match="no replies"):
        most_frequent([])


def test_refusals_are_found_at_the_beginning_whatever_the_apostrophe():
    assert refuses("I can’t help with that.")
    assert refuses("Oh.  I CANNOT\nassist you.")
    assert not refuses("I can help with that.")
    assert not refuses("word " * 50 + "i can't help")  # 250 characters in: about something else
    assert refusal_share(["I won't.", "Of course!"]) == 0.5
    assert refusal_share([]) == 0.0


def test_every_phrase_is_written_as_it_is_looked_for():
    assert all(refuses(phrase) for phrase in REFUSALS)


def test_stock_texts_are_told_only_where_three_prompts_got_them():
    few = collapse_signals(["a b", "a b", "c d"], [0.0, 0.5, 1.0])
    assert (few.stock_reply, few.stock_reply_text) == (2 / 3, None)
    assert (few.duplicates, few.repeated_ngrams, few.distinct_2) == pytest.approx((1 / 3, 0.5, 2 / 3))
    many = collapse_signals(["a b", "a b", "A  b", "c d"], [0.0] * 4)
    assert (many.stock_reply, many.stock_reply_text) == (0.75, "a b")
    assert (many.stock_opening, many.stock_opening_text) == (0.75, "a b")
