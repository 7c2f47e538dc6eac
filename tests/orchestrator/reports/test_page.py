"""The report as a page: one file that asks for nothing, says nothing that people wrote as HTML, and folds."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from orchestrator.judging.elo import EloNumbers
from orchestrator.judging.gates import LiveEvidence, Verdict
from orchestrator.people.erasure import TEXTS_BEGIN, TEXTS_END
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.page import ABOVE, COST, first_figures, first_screen, inline, to_html
from orchestrator.reports.pictures.catalogue import draw_all
from orchestrator.reports.pictures.style import Picture
from orchestrator.reports.samples import Sample, pick, sample_lines
from orchestrator.reports.stops import Stop
from orchestrator.reports.verdict import verdict
from tests.orchestrator.reports.whole_cycle import DIGEST, judged, reply, whole_cycle

BAD = "<script>alert(1)</script><img src=https://example.com/x.png> {{ 7 * 7 }}"
WEEKS = Picture("weeks", "The weeks so far.", b"png")


def samples() -> list[Sample]:
    old = [reply("old words", 1.0, "1", asked=BAD), reply("old harmless", 1.0, "2", "harmless")]
    new = [reply(BAD, 2.0, "1", asked=BAD), reply("new harmless", 2.0, "2", "harmless")]
    return pick(old, new, "live")


def test_it_asks_for_nothing_outside_and_runs_nothing() -> None:
    numbers = whole_cycle()
    html = to_html(numbers, draw_all(numbers), samples())
    addresses = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)""", re.sub("&[^;]+;", "", html))
    shown = [address for address in addresses if address.startswith("data:image/png;base64,")]
    # What is left is a person's words, with their brackets escaped.
    assert {address for address in addresses if address not in shown} == {"https://example.com/x.png"}
    assert len(shown) >= 4
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"<(script|link|iframe|object|embed)", html)


def test_what_people_wrote_is_text() -> None:
    html = to_html(whole_cycle(name=BAD), [], samples())
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "{{ 7 * 7 }}" in html


def test_texts_lie_where_an_erasure_takes_them_out() -> None:
    html = to_html(whole_cycle(), [], samples())
    left = re.sub(f"{TEXTS_BEGIN}.*?{TEXTS_END}", "", html, flags=re.DOTALL)
    assert "old words" in html
    assert "new harmless" in html
    for text in ("old words", "old harmless", "new harmless", "alert(1)"):
        assert text not in left
    records = [json.loads(json.dumps(line)) for line in sample_lines(samples())]
    assert [(record["policy"], record["reply"]) for record in records][:1] == [("live", "old words")]
    assert all(record["messages"] for record in records)


def test_the_first_screen_comes_before_what_folds() -> None:
    html = to_html(whole_cycle(), [WEEKS], samples())
    first, _, rest = html.partition("<details")
    figures = ("People&#39;s Elo against live", "+30", "70%", "60%", "1 nats")
    for said in ("The new policy went live", *figures, "old words"):
        assert said in first, said
    assert "data:image/png;base64,cG5n" in first
    for title in (
        "What stopped", "Gates", "New against live and against initial", "The comparisons", "The preference model",
        "PPO", "The snapshot, judged", "More replies, old and new", "Cost", "Lineage",
    ):  # fmt: skip
        assert re.search(f"<summary>{title}", "<details" + rest), title
    assert "orchestrator lineage 0123456789ab" in rest
    assert ABOVE in html
    assert COST in rest


def test_new_live_and_initial_stand_beside_each_other() -> None:
    html = re.sub(r"\s+", " ", to_html(whole_cycle(), [], []))
    assert "<tr><td>PM score</td><td>1.000</td><td>1.600</td><td>2.000</td></tr>" in html
    bare = re.sub(r"\s+", " ", to_html(whole_cycle(live_evaluation=None), [], []))
    assert "<tr><td>PM score</td><td>1.000</td><td>–</td><td>2.000</td></tr>" in bare


def test_a_cycle_that_came_to_nothing_has_a_page_too() -> None:
    html = to_html(CycleNumbers(cycle=4, name="x"), [], [])
    assert "Nothing is decided yet." in html
    assert first_figures(CycleNumbers(cycle=4, name="x")) == []


def test_the_prefect_ui_gets_the_first_screen_with_the_link_and_no_texts() -> None:
    numbers = whole_cycle()
    text = first_screen(numbers, WEEKS, "http://desk/desk/cycles/3/report")
    assert "**The new policy went live" in text
    assert "| People's Elo against live | +30 | [+5, +55], 100 comparisons |" in text
    assert "![The weeks so far.](data:image/png;base64,cG5n)" in text
    assert "[at the desk](http://desk/desk/cycles/3/report)" in text
    assert "<details><summary>The gates and their numbers</summary>" in text
    assert "<td>Distance from the initial policy</td><td>passed</td><td>KL 1 is within" in text
    assert "**Stopped** at `train_policy`" in text
    assert "at the desk, under Cycles" in first_screen(numbers, None, None)


def test_peoples_elo_says_against_whom() -> None:
    numbers = whole_cycle(elo=EloNumbers(80.0, (40.0, 120.0), 200, 120, 70, 10))
    assert first_figures(numbers)[0].name == "People's Elo against the initial policy"
    assert first_figures(numbers)[0].value == "+80"
    initial = replace(numbers, live=LiveEvidence(1, DIGEST, True))
    assert first_figures(initial)[0].name == "People's Elo against live, the initial policy"
    assert first_figures(replace(numbers, elo=None))[0].note == "nobody compared it yet"


def test_a_cell_of_the_markdown_report_is_html_without_its_marks() -> None:
    assert str(inline(r"20 % “I can't \| help \*now\*” & `a<b`")) == (
        "20 % “I can&#39;t | help *now*” &amp; <code>a&lt;b</code>"
    )


def test_the_sample_is_the_prompt_whose_new_reply_has_the_median_score() -> None:
    old = [reply(f"old {n}", 0.0, str(n)) for n in range(5)]
    new = [reply(f"new {n}", score, str(n)) for n, score in enumerate([3.0, 1.0, 2.0, 5.0])]
    # Of 1, 2, 3, 5 the lower of the two in the middle is 2; the old reply to the fifth prompt has no new one.
    [sample] = pick(old, new, "initial")
    assert (sample.old.reply, sample.new.reply) == ("old 2", "new 2")
    erased = [replace(one, reply="[erased]") if one.prompt_id == "2" else one for one in new]
    [sample] = pick(old, erased, "initial")
    assert sample.new.reply == "new 0"
    assert pick([], new, "initial") == []


def test_the_verdict_in_plain_words() -> None:
    numbers = whole_cycle()
    assert verdict(numbers) == (
        "The new policy went live: its replies score 1.00 above the initial policy's by this week's preference model. "
        "People prefer it to the initial policy."
    )
    refused = replace(
        numbers,
        decision="refuse",
        elo=EloNumbers(-80.0, (-120.0, -40.0), 9, 1, 8, 0),
        reasons=(Verdict("kl", False, ""), Verdict("score_gain", False, ""), Verdict("pm_accuracy", True, "")),
    )
    assert verdict(refused) == (
        "The new policy was not put live: it is too far from the initial policy and it is not surely better than the "
        "initial policy. What was live answers raters as before. People prefer the initial policy to it."
    )
    still = replace(refused, evaluation=judged(1.0, kl_nats=0.0), elo=None)
    assert "put live: it has not moved away from the initial policy and it is not" in verdict(still)
    assert verdict(still).endswith("People have not compared it yet.")
    waiting = CycleNumbers(cycle=5, name="x", waits="approval.required is on.")
    assert verdict(waiting) == "The new policy waits for a person to decide: approval.required is on."
    stopped = CycleNumbers(cycle=5, name="x", stops=(Stop("train_policy", "a crash", "", "", ""),))
    assert verdict(stopped).startswith("The cycle stopped at train_policy: nothing was decided")
    assert verdict(CycleNumbers(cycle=0, name="x", decision="promote")) == (
        "The initial policy is live; people can begin."
    )
