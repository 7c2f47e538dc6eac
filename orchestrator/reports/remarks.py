"""What contradicts a green light, or a red one: rules over a cycle's numbers, each of which may say a sentence.

No rule decides anything; gates do (`orchestrator/judging/gates.py`). To add one, write a function and name it in
`RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.refusals import refused_said
from orchestrator.reports.watching import collapse_remarks
from orchestrator.reports.wording import with_interval

FEW_HELD_OUT = 100
"""Held-out comparisons below which the interval of an accuracy is wider than ± 0.1."""
CUT_OFF = 0.5
"""Share of the first rollout's replies beyond which most of what PPO learns from is cut off."""
FEW_COMPARED = 50
"""Comparisons by people below which an Elo's interval is wider than ± 100."""
LONGER = 1.5
SHARE_SEEN = 0.5
"""Share of the training PM's gain that the watcher should see too."""


def remarks(numbers: CycleNumbers) -> list[str]:
    """What every rule has to say, in the order of the rules."""
    return [said for rule in RULES for said in rule(numbers)]


def gates_remark(numbers: CycleNumbers) -> Iterator[str]:
    """What gates that passed were not sure of."""
    yield from (reason.remark for reason in numbers.reasons if reason.remark)


def _gate_says(numbers: CycleNumbers, gate: str) -> bool:
    """Whether a gate has remarked it already; the decisions of earlier versions have no such gates."""
    return any(reason.gate == gate and reason.remark for reason in numbers.reasons)


def collapse(numbers: CycleNumbers) -> Iterator[str]:
    """Signs of collapse that rose by more than chance."""
    if numbers.evaluation is not None and numbers.initial_evaluation is not None:
        yield from collapse_remarks(numbers.evaluation, numbers.initial_evaluation)


def pm_below_chance(numbers: CycleNumbers) -> Iterator[str]:
    """A question on which the preference model orders fewer pairs rightly than a coin."""
    model = numbers.preference_model if not _gate_says(numbers, "pm_accuracy_by_question") else None
    for question, found in sorted(model.held_out.by_question.items()) if model is not None else ():
        if found.accuracy is not None and found.accuracy < 0.5:
            yield (
                f"the preference model is below chance on {question} comparisons: "
                f"{with_interval(found.accuracy, found.ci)} of {found.n}"
            )


def few_held_out(numbers: CycleNumbers) -> Iterator[str]:
    """An accuracy that rests on few comparisons."""
    model = numbers.preference_model
    if model is not None and model.held_out.n < FEW_HELD_OUT:
        yield f"the accuracy of the preference model rests on {model.held_out.n} held-out comparisons alone"


def calibration(numbers: CycleNumbers) -> Iterator[str]:
    """Score gaps that surely win less often than they say."""
    found = numbers.preference_model.held_out.calibration if numbers.preference_model is not None else None
    if found is None or found.slope_ci is None or found.slope_ci[1] >= 1:
        return
    if found.slope_ci[1] < 0:
        yield "the preference model's score gaps point the wrong way"
    else:
        yield "the preference model is over-confident: its scores promise more than they keep"


def knows_length_alone(numbers: CycleNumbers) -> Iterator[str]:
    """A preference model that orders replies by their length and knows nothing else."""
    held_out = numbers.preference_model.held_out if numbers.preference_model is not None else None
    if held_out is None or held_out.longer_wins is None or held_out.length_regressed is None:
        return
    longer, left, found = held_out.longer_wins, held_out.length_regressed, held_out.accuracy
    if longer.accuracy is None or left.accuracy is None or found is None or not held_out.ci[0] > 0.5:
        return
    if left.ci[0] <= 0.5 and max(longer.accuracy, 1 - longer.accuracy) >= found:
        which = "longer" if longer.accuracy > 0.5 else "shorter"
        yield (
            f"the preference model knows no more than that {which} replies win "
            f"({with_interval(longer.accuracy, longer.ci)} of them do): without length its accuracy is "
            f"{with_interval(left.accuracy, left.ci)}. PPO will learn length alone; collect comparisons of replies of "
            "about one length"
        )


def orientation_skipped(numbers: CycleNumbers) -> Iterator[str]:
    """Nobody looked whether labels are turned round."""
    if numbers.preference_model is not None and numbers.orientation is None:
        yield "the orientation check was skipped: labels turned round everywhere would not be seen"


def doubtful_initial_policy(numbers: CycleNumbers) -> Iterator[str]:
    """What the preflight of the initial policy found."""
    yield from (f"the initial policy: {doubt[0].lower()}{doubt[1:].rstrip('.')}" for doubt in numbers.doubts)


def cut_at_the_cap(numbers: CycleNumbers) -> Iterator[str]:
    """Most replies of the initial policy were cut off where PPO stops listening."""
    start = numbers.training.watch.start if numbers.training is not None and numbers.training.watch else None
    if numbers.training is not None and start is not None and start.truncated > CUT_OFF:
        cap = numbers.training.settings.get("max_reply_tokens", "its limit")
        yield (
            f"{start.truncated:.0%} of the initial policy's replies were cut off at ppo.max_reply_tokens = {cap}: from "
            "them PPO learns nothing about ending. Raise it, or set a ppo.cut_off_penalty"
        )


def stopped_ppo(numbers: CycleNumbers) -> Iterator[str]:
    """What went live is what a tripwire left."""
    if numbers.decision == "promote" and numbers.training is not None and numbers.training.stopped:
        yield f"PPO was stopped before its end ({numbers.training.stopped}), and what it kept went live"


def worse_than_live(numbers: CycleNumbers) -> Iterator[str]:
    """It went live although the point estimate is against it."""
    gain = numbers.live.gain if numbers.live is not None and not numbers.live.is_initial else None
    if _gate_says(numbers, "live_gain"):
        return
    if numbers.decision == "promote" and gain is not None and gain.gain < 0:
        yield f"it went live with a lower score than what was live: {with_interval(gain.gain, gain.ci, '+.3f')}"


def lost_on_a_question(numbers: CycleNumbers) -> Iterator[str]:
    """A kind of request on which it scores below the initial policy."""
    after, before = numbers.evaluation, numbers.initial_evaluation
    if numbers.decision != "promote" or after is None or before is None or _gate_says(numbers, "gain_by_question"):
        return
    for kind, now in sorted(after.by_kind.items()):
        then = before.by_kind.get(kind)
        if then is not None and now.pm_score < then.pm_score:
            yield f"on {kind} requests it scores {then.pm_score - now.pm_score:.2f} below the initial policy"


def twin_sees_less(numbers: CycleNumbers) -> Iterator[str]:
    """A gain that the watcher sees less than half of."""
    after, before = numbers.evaluation, numbers.initial_evaluation
    if after is None or before is None or after.watcher_score is None or before.watcher_score is None:
        return
    gain, seen = after.pm_score - before.pm_score, after.watcher_score - before.watcher_score
    if gain > 0 and seen < SHARE_SEEN * gain:
        yield f"the watcher sees {seen:+.2f} where the training PM sees {gain:+.2f}: some of the gain is the PM's own"


def left_the_line(numbers: CycleNumbers) -> Iterator[str]:
    """The score stopped growing with the distance."""
    departure = getattr(numbers.kl_law, "departure", None)
    if departure is not None and departure.direction == "below":
        yield f"beyond KL {departure.kl_nats:.3g} nats the score grew more slowly: more of it was bought with distance"


def longer(numbers: CycleNumbers) -> Iterator[str]:
    """Replies that grew by half or more."""
    after, before = numbers.evaluation, numbers.initial_evaluation
    lengths = [found.reply_tokens if found is not None else None for found in (before, after)]
    if lengths[0] and lengths[1] and lengths[1] >= LONGER * lengths[0]:
        yield f"replies are longer: {lengths[1]:.0f} tokens, the initial policy's {lengths[0]:.0f}"


def people_disagree(numbers: CycleNumbers) -> Iterator[str]:
    """People prefer what was refused, or not what went live."""
    elo = numbers.elo
    if elo is None:
        return
    said = f"Elo {with_interval(elo.elo, elo.ci, '+.0f')}"
    if numbers.decision == "refuse" and elo.ci[0] > 0:
        yield f"people prefer it to the initial policy ({said}), yet it was refused"
    if numbers.decision == "promote" and elo.elo < 0:
        yield f"people prefer the initial policy ({said}), yet it went live"


def few_compared(numbers: CycleNumbers) -> Iterator[str]:
    """An Elo that rests on few comparisons."""
    if numbers.elo is not None and numbers.elo.num_comparisons < FEW_COMPARED:
        yield f"the Elo rests on {numbers.elo.num_comparisons} comparisons with the initial policy alone"


def refused_by_template(numbers: CycleNumbers) -> Iterator[str]:
    """Records that the chat template refuses are in no training and no figure."""
    yield from (f"the chat template refused {said}" for said in refused_said(numbers))


def too_long(numbers: CycleNumbers) -> Iterator[str]:
    """Dialogues that no model here may read are in no training and no figure."""
    model, training, judged = numbers.preference_model, numbers.training, numbers.evaluation
    lengths = dict(model.dropped_too_long_by_split) if model is not None else {}
    counts = [
        (lengths.get("train"), "train comparisons"),
        (lengths.get("held_out"), "held-out comparisons"),
        (training.prompts_too_long if training is not None else None, "prompts of PPO"),
        (judged.prompts_too_long if judged is not None else None, "prompts to judge on"),
    ]
    said = ", ".join(f"{count} {what}" for count, what in counts if count)
    if said:
        limit = f" of {model.max_tokens} tokens" if model is not None else ""
        yield (
            f"too long, and left out: {said}. The preference model reads texts{limit}, prompt and reply; to have "
            "them, raise preference_model.max_tokens as far as the policy's context goes, or lower max_reply_tokens"
        )


Rule = Callable[[CycleNumbers], Iterator[str]]
RULES: tuple[Rule, ...] = (
    people_disagree, worse_than_live, gates_remark, pm_below_chance, lost_on_a_question, twin_sees_less, stopped_ppo,
    collapse, left_the_line, longer, calibration, few_held_out, few_compared, orientation_skipped,
    doubtful_initial_policy, cut_at_the_cap, refused_by_template, too_long, knows_length_alone,
)  # fmt: skip
