"""The rows of a cycle's report about how PPO went and whether the policy has collapsed. Pure: results in, rows out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from models.policy.results import Evaluation, EvaluationPart, LastSignals, PPOResult, RolloutSignals
from models.statistics.intervals import share_interval
from orchestrator.reports.wording import SHARE, interval, number, share

Row = tuple[str, str]
STOCK_TEXT_CHARACTERS = 60


def watch_rows(training: PPOResult, offsets: tuple[float, float] | None = None) -> list[Row]:
    """Recoveries, alarms that passed, the twin gap, mean log-p accuracy.

    `offsets` are those of the training PM and of the watcher; taken off, their scores can be compared.
    """
    rows = recovery_rows(training)
    watch = training.watch
    # A snapshot from before PPO was watched has neither.
    if watch is not None:
        answered = {watch.stopped_by, *(recovery.wire for recovery in training.recoveries or ())}
        passed = sorted({alarm.wire for alarm in watch.alarms} - answered)
        if passed:
            rows.append(("Alarms that passed", ", ".join(passed)))
        if watch.start is not None and watch.end is not None and watch.end.twin_gap is not None:
            rows.append(("Twin gap", _twin_gap(watch.start, watch.end, watch.end.twin_gap, offsets)))
    accuracy = training.logp_accuracy
    if accuracy is not None and accuracy.curve:
        first, last = accuracy.curve[0], accuracy.curve[-1]
        for kind, ceiling in sorted(accuracy.preference_model.items()):
            # Results of before there were intervals have none.
            first_ci, last_ci, ceiling_ci = (
                _after((intervals or {}).get(kind)) for intervals in (first.ci, last.ci, accuracy.preference_model_ci)
            )
            began, ended = number(first.by_kind.get(kind)), number(last.by_kind.get(kind))
            rows.append(
                (
                    f"Mean log-p accuracy, {kind}",
                    f"{began}{first_ci} → {ended}{last_ci} (the PM on the same "
                    f"{accuracy.pairs[kind]} pairs: {ceiling:.3f}{ceiling_ci})",
                )
            )
    return rows


def recovery_rows(training: PPOResult) -> list[Row]:
    """After which iterations PPO went back to good weights, why, and how it went on; nothing where it never did."""
    if not training.recoveries:
        return []
    told = (
        f"after iteration {one.iteration} (`{one.wire}`) back to "
        + ("the start" if one.back_to == 0 else f"the weights of iteration {one.back_to}")
        + f", on at a learning rate of {one.learning_rate:.3g}"
        for one in training.recoveries
    )
    return [("PPO went back", "; ".join(told))]


def _twin_gap(start: RolloutSignals, end: LastSignals, gap: float, offsets: tuple[float, float] | None) -> str:
    mine, its = offsets or (0.0, 0.0)
    began, ended = (None if at.score_watcher is None else at.score_watcher - its for at in (start, end))
    return (
        f"{gap:+.3f}: training PM {start.score - mine:.3f} → {end.score - mine:.3f}, "
        f"watcher {number(began)} → {number(ended)}" + ("" if offsets is None else ", above the reference set")
    )


def collapse_rows(evaluation: Evaluation, initial: Evaluation | None) -> list[Row]:
    """The watcher's score, entropy, distinct words, duplicates, stock replies and refusals, beside the initial's."""
    found = evaluation.collapse
    if found is None:
        return []
    rows: list[Row] = []
    if evaluation.watcher_score is not None:
        before = _of(initial, _watcher_score)
        rows.append(("Watcher's score", f"{evaluation.watcher_score:.3f} ({_beside(before, '.3f')})"))
    entropy = f"{number(evaluation.entropy)} nats per token"
    rows.append(("Entropy", f"{entropy} ({_beside(_of(initial, _entropy), '.3f')})"))
    for name, sign, text in (
        ("Distinct word pairs", _distinct_2, None),
        ("Replies that equal another", _duplicates, None),
        ("Most frequent reply", _stock_reply, found.stock_reply_text),
        ("Most frequent opening", _stock_opening, found.stock_opening_text),
    ):
        quoted = f" “{_one_line(text)}”" if text else ""
        rows.append((name, f"{share(sign(evaluation))}{quoted} ({_beside(_of(initial, sign))})"))
    for kind, name in (("helpful", "Refusals of ordinary requests"), ("harmless", "Refusals of harmful requests")):
        mine, its = (part and part.by_kind.get(kind) for part in (evaluation, initial))
        if mine is not None and mine.collapse is not None:
            rows.append((name, f"{share(_refusals(mine))} ({_beside(_of(its, _refusals))})"))
    return rows


def collapse_remarks(evaluation: Evaluation, initial: Evaluation) -> list[str]:
    """Signs of collapse that rose from the initial policy to the snapshot by more than chance, each as a sentence.

    A rise counts where the 95 % interval of the difference of the two shares lies above 0, the replies taken as
    independent.
    """
    ordinary = tuple(evaluated.of_ordinary_requests for evaluated in (initial, evaluation))
    remarks = []
    for name, sign, (before, now) in (
        ("replies that equal another", _duplicates, (initial, evaluation)),
        ("the most frequent reply", _stock_reply, (initial, evaluation)),
        ("the most frequent opening", _stock_opening, (initial, evaluation)),
        ("refusals of ordinary requests", _refusals, ordinary),
        ("replies cut off", _truncated, (initial, evaluation)),
    ):
        if before is None or now is None or before.num_prompts is None or now.num_prompts is None:
            continue
        then, today = sign(before), sign(now)
        if then is None or today is None:
            continue
        if _rise_low(then, before.num_prompts, today, now.num_prompts) > 0:
            remarks.append(f"{name} rose from {share(then)} to {share(today)}, more than chance: read some replies")
    return remarks


# Signs of collapse, each None where it was not measured.


def _duplicates(part: EvaluationPart) -> float | None:
    return part.collapse.duplicates if part.collapse else None


def _stock_reply(part: EvaluationPart) -> float | None:
    return part.collapse.stock_reply if part.collapse else None


def _stock_opening(part: EvaluationPart) -> float | None:
    return part.collapse.stock_opening if part.collapse else None


def _distinct_2(part: EvaluationPart) -> float | None:
    return part.collapse.distinct_2 if part.collapse else None


def _refusals(part: EvaluationPart) -> float | None:
    return part.collapse.refusals if part.collapse else None


def _truncated(part: EvaluationPart) -> float | None:
    return part.truncated


def _entropy(part: EvaluationPart) -> float | None:
    return part.entropy


def _watcher_score(part: EvaluationPart) -> float | None:
    return part.watcher_score


def _of(part: EvaluationPart | None, sign: Callable[[EvaluationPart], float | None]) -> float | None:
    return None if part is None else sign(part)


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
