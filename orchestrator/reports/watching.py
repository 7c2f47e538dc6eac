"""The rows of a cycle's report about how PPO went and whether the policy has collapsed. Pure: results in, rows out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.statistics.intervals import share_interval
from orchestrator.reports.wording import SHARE, interval, number, share

Row = tuple[str, str]
STOCK_TEXT_CHARACTERS = 60


def watch_rows(training: Mapping[str, Any], offsets: tuple[float, float] | None = None) -> list[Row]:
    """Alarms that passed, the twin gap, mean log-p accuracy. `training`: a snapshot's results.

    `offsets` are those of the training PM and of the watcher; taken off, their scores can be compared.
    """
    rows: list[Row] = []
    watch = training.get("watch")
    # A snapshot from before PPO was watched has neither.
    if watch:
        passed = sorted({alarm["wire"] for alarm in watch["alarms"]} - {watch["stopped_by"]})
        if passed:
            rows.append(("Alarms that passed", ", ".join(passed)))
        end, start = watch["end"], watch["start"]
        if end and end.get("twin_gap") is not None:
            mine, its = offsets or (0.0, 0.0)
            rows.append(
                (
                    "Twin gap",
                    f"{end['twin_gap']:+.3f}: training PM {start['score'] - mine:.3f} → {end['score'] - mine:.3f}, "
                    f"watcher {start['score_watcher'] - its:.3f} → {end['score_watcher'] - its:.3f}"
                    + ("" if offsets is None else ", above the reference set"),
                )
            )
    accuracy = training.get("logp_accuracy")
    if accuracy and accuracy["curve"]:
        first, last = accuracy["curve"][0], accuracy["curve"][-1]
        for kind, ceiling in sorted(accuracy["preference_model"].items()):
            # Results of before there were intervals have none.
            first_ci, last_ci, ceiling_ci = (
                _after((intervals or {}).get(kind))
                for intervals in (first.get("ci"), last.get("ci"), accuracy.get("preference_model_ci"))
            )
            rows.append(
                (
                    f"Mean log-p accuracy, {kind}",
                    f"{first[kind]:.3f}{first_ci} → {last[kind]:.3f}{last_ci} (the PM on the same "
                    f"{accuracy['pairs'][kind]} pairs: {ceiling:.3f}{ceiling_ci})",
                )
            )
    return rows


def collapse_rows(evaluation: Mapping[str, Any], initial: Mapping[str, Any]) -> list[Row]:
    """The watcher's score, entropy, distinct words, duplicates, stock replies and refusals, beside the initial's."""
    found = evaluation.get("collapse")
    if not found:
        return []
    before = initial.get("collapse") or {}
    rows: list[Row] = []
    if "watcher_score" in evaluation:
        rows.append(
            ("Watcher's score", f"{evaluation['watcher_score']:.3f} ({_beside(initial.get('watcher_score'), '.3f')})")
        )
    rows += [
        ("Entropy", f"{evaluation['entropy']:.3f} nats per token ({_beside(initial.get('entropy'), '.3f')})"),
        ("Distinct word pairs", f"{share(found['distinct_2'])} ({_beside(before.get('distinct_2'))})"),
        ("Replies that equal another", f"{share(found['duplicates'])} ({_beside(before.get('duplicates'))})"),
    ]
    for key, name in (("stock_reply", "Most frequent reply"), ("stock_opening", "Most frequent opening")):
        text = found[f"{key}_text"]
        quoted = f" “{_one_line(text)}”" if text else ""
        rows.append((name, f"{share(found[key])}{quoted} ({_beside(before.get(key))})"))
    for kind, name in (("helpful", "Refusals of ordinary requests"), ("harmless", "Refusals of harmful requests")):
        mine = evaluation["by_kind"].get(kind, {}).get("collapse")
        if mine:
            its = (initial.get("by_kind") or {}).get(kind, {}).get("collapse") or {}
            rows.append((name, f"{share(mine['refusals'])} ({_beside(its.get('refusals'))})"))
    return rows


def collapse_remarks(evaluation: Mapping[str, Any], initial: Mapping[str, Any]) -> list[str]:
    """Signs of collapse that rose from the initial policy to the snapshot by more than chance, each as a sentence.

    A rise counts where the 95 % interval of the difference of the two shares lies above 0, the replies taken as
    independent.
    """
    whole = (evaluation, initial, evaluation.get("collapse") or {}, initial.get("collapse") or {})
    parts = [policy.get("by_kind", {}).get("helpful", {}) for policy in (evaluation, initial)]
    ordinary = (*parts, *(part.get("collapse") or {} for part in parts))
    remarks = []
    for name, key, (mine, its, now, before) in (
        ("replies that equal another", "duplicates", whole),
        ("the most frequent reply", "stock_reply", whole),
        ("the most frequent opening", "stock_opening", whole),
        ("refusals of ordinary requests", "refusals", ordinary),
        ("replies cut off", "truncated", (evaluation, initial, evaluation, initial)),
    ):
        shares = before.get(key), now.get(key)
        if None in shares or "num_prompts" not in mine or "num_prompts" not in its:
            continue
        if _rise_low(shares[0], its["num_prompts"], shares[1], mine["num_prompts"]) > 0:
            remarks.append(f"{name} rose from {shares[0]:.1%} to {shares[1]:.1%}, more than chance: read some replies")
    return remarks


def _rise_low(before: float, num_before: int, now: float, num_now: int) -> float:
    """Lower end of the 95 % interval of the difference of two independent shares.

    Source: Newcombe 1998, Stat. Med. 17, 873-890, method 10.
    """
    low, (_, high) = share_interval(now, num_now)[0], share_interval(before, num_before)
    return now - before - math.hypot(now - low, high - before)


def _beside(value: float | None, form: str = SHARE) -> str:
    return f"initial policy: {number(value, form)}"


def _one_line(text: str) -> str:
    """A policy's own words inside a table cell: one line, short, without what Markdown would take for its own."""
    line = " ".join(text.split())
    line = line if len(line) <= STOCK_TEXT_CHARACTERS else line[:STOCK_TEXT_CHARACTERS] + "…"
    return "".join(f"\\{letter}" if letter in "|`*_<>[]\\" else letter for letter in line)


def _after(ci: Sequence[float] | None) -> str:
    return f" {interval(ci)}" if ci else ""
