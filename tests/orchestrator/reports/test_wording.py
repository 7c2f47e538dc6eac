"""How a report words a number, by hand."""

from __future__ import annotations

from orchestrator.reports.wording import SHARE, SIGNED, interval, number, share, with_interval


def test_a_number_that_was_not_measured_is_a_dash_or_what_is_given_for_it() -> None:
    assert number(0.5) == "0.500"
    assert number(0.0, ".1f") == "0.0"
    assert number(None) == "–"
    assert number(None, missing="") == ""
    assert share(0.125) == "12.5%"
    assert share(None) == "–"


def test_an_end_of_an_interval_about_which_nothing_is_known_is_a_question_mark() -> None:
    assert interval((0.25, 0.75)) == "[0.250, 0.750]"
    assert interval((None, 0.75), ".3g") == "[?, 0.75]"


def test_a_number_with_its_interval_takes_one_format() -> None:
    assert with_interval(0.5, (0.25, 0.75), ".2f") == "0.50 [0.25, 0.75]"
    assert with_interval(0.25, [-0.5, None], SIGNED) == "+0.250 [-0.500, ?]"
    assert with_interval(0.125, (0.0, 0.25), SHARE) == "12.5% [0.0%, 25.0%]"


def test_without_its_interval_a_number_says_too_much() -> None:
    assert with_interval(0.5, None) == "–"
    assert with_interval(None, (0.25, 0.75)) == "–"
