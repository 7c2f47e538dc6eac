"""What a snapshot must show to go live. Pure: numbers in, verdicts with their reasons out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from models.policy.results import OpenInterval
from orchestrator.config import GatesSection
from orchestrator.judging.agreement import ALL, Part
from orchestrator.judging.elo import EloNumbers

Outcome = Literal["promote", "hold", "refuse"]


@dataclass(frozen=True)
class Verdict:
    """One gate's answer; `reason` says the number, the bound and the setting it came from."""

    gate: str
    passed: bool
    reason: str
    remark: str | None = None
    """What contradicts a gate that passed, and is not sure enough to refuse."""
    holds: bool = False
    """Whether a person is asked where it failed, rather than the snapshot refused."""

    def to_json(self) -> dict[str, Any]:
        """As stored on the decision; what says nothing is left out."""
        return {name: value for name, value in asdict(self).items() if name == "passed" or value}


@dataclass(frozen=True)
class Gain:
    """The mean difference of two policies' scores over the same prompts, PM units, with its interval."""

    gain: float
    ci: OpenInterval
    """Both ends are None where the prompts are of a single dialogue, which says nothing of others."""
    num_prompts: int


@dataclass(frozen=True)
class Share:
    """A share of `n` with its 95 % interval."""

    share: float
    ci: tuple[float, float]
    n: int


@dataclass(frozen=True)
class LiveEvidence:
    """The policy that was live when the snapshot was judged, and how the snapshot compares with it."""

    id: int
    digest: str
    is_initial: bool
    gain: Gain | None = None
    """None where the preference model can't score it: it began from another initial policy."""
    gain_by_question: Mapping[str, Gain] = field(default_factory=dict)
    elo: EloNumbers | None = None
    """What people said of it so far; None where nobody compared it."""


@dataclass(frozen=True)
class FreshEvidence:
    """What the last preference model says about this week's comparisons, by question and of all."""

    cycle: int
    """Number of the cycle that trained it."""
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class Evidence:
    """The numbers the gates look at. Intervals are 95 %; scores and KL are per reply, KL in nats."""

    pm_accuracy: float | None
    pm_accuracy_ci: tuple[float, float] | None
    num_held_out: int
    score_gain: float
    score_gain_ci: OpenInterval
    kl_nats: float
    duplicate_share: float | None = None
    refusal_share: float | None = None
    """Of ordinary requests."""
    num_dialogues: int | None = None
    """That the held-out comparisons are from; None where that is not known."""
    pm_accuracy_by_question: Mapping[str, Share] = field(default_factory=dict)
    """There only where more than one question was asked; so are the gains, whose intervals are of 99 %."""
    score_gain_by_question: Mapping[str, Gain] = field(default_factory=dict)
    live: LiveEvidence | None = None
    """None where nothing was live."""
    fresh: FreshEvidence | None = None
    """None where there is no earlier preference model to ask."""

    def to_json(self) -> dict[str, Any]:
        """As stored on the decision."""
        return asdict(self)


def judge(gates: GatesSection, evidence: Evidence) -> list[Verdict]:
    """Every gate's verdict; `outcome` says what they come to."""
    verdicts = [_pm_accuracy(gates, evidence), _kl(gates, evidence), _score_gain(gates, evidence)]
    if evidence.pm_accuracy_by_question:
        verdicts.append(_pm_accuracy_by_question(gates, evidence.pm_accuracy_by_question))
    if evidence.live is not None:
        verdicts.append(_live_gain(gates, evidence.live))
    if evidence.score_gain_by_question:
        verdicts.append(_gain_by_question(gates, evidence))
    if evidence.fresh is not None and evidence.fresh.parts:
        verdicts.append(_fresh_agreement(gates, evidence.fresh))
    if gates.max_duplicate_share is not None:
        verdicts.append(_share("duplicates", "of replies equal another one", evidence.duplicate_share,
                               "gates.max_duplicate_share", gates.max_duplicate_share))  # fmt: skip
    if gates.max_refusal_share is not None:
        verdicts.append(_share("refusals", "of ordinary requests are refused", evidence.refusal_share,
                               "gates.max_refusal_share", gates.max_refusal_share))  # fmt: skip
    return verdicts


def outcome(verdicts: Sequence[Verdict]) -> Outcome:
    """The snapshot goes live where every gate has passed, and waits for a person where those that failed only hold."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return "promote"
    return "hold" if all(verdict.holds for verdict in failed) else "refuse"


def _pm_accuracy(gates: GatesSection, evidence: Evidence) -> Verdict:
    gate = "pm_accuracy"
    if evidence.pm_accuracy is None or evidence.pm_accuracy_ci is None:
        return Verdict(gate, False, "no held-out comparison: the preference model's accuracy is unknown")
    low, high = evidence.pm_accuracy_ci
    counted = f"n = {evidence.num_held_out}"
    if evidence.num_dialogues is not None:
        counted += f" from {evidence.num_dialogues} dialogues"
    found = f"PM held-out accuracy {evidence.pm_accuracy:.3f} [{low:.3f}, {high:.3f}] ({counted})"
    bound = f"gates.min_pm_accuracy = {gates.min_pm_accuracy:g}"
    if low > gates.min_pm_accuracy:
        return Verdict(gate, True, f"{found} lies above {bound}")
    return Verdict(gate, False, f"{found} does not lie above {bound}")


def _pm_accuracy_by_question(gates: GatesSection, shares: Mapping[str, Share]) -> Verdict:
    gate, least = "pm_accuracy_by_question", gates.min_pm_accuracy_by_question
    bound = f"gates.min_pm_accuracy_by_question = {least:g}"
    surely_below = [question for question, found in shares.items() if found.ci[1] < least]
    if surely_below:
        return Verdict(gate, False, f"PM held-out accuracy {_shares(shares, surely_below)} lies below {bound}")
    below = [question for question, found in shares.items() if found.share < least]
    remark = f"the PM is right on fewer than {least:.0%} of {_shares(shares, below)}: too few to be sure"
    return Verdict(
        gate,
        True,
        f"PM held-out accuracy by question, {_shares(shares, shares)}, does not lie below {bound}",
        remark if below else None,
    )


def _shares(shares: Mapping[str, Share], questions: Sequence[str] | Mapping[str, Share]) -> str:
    found = ((question, shares[question]) for question in questions)
    return ", ".join(
        f"{question} {part.share:.3f} [{part.ci[0]:.3f}, {part.ci[1]:.3f}] (n = {part.n})" for question, part in found
    )


def _kl(gates: GatesSection, evidence: Evidence) -> Verdict:
    gate = "kl"
    kl = evidence.kl_nats
    if kl == 0:
        return Verdict(gate, False, "KL 0: identical to the initial policy")
    if kl > gates.max_kl_nats:
        return Verdict(gate, False, f"KL {kl:.2f} nats per reply exceeds gates.max_kl_nats = {gates.max_kl_nats:g}")
    return Verdict(gate, True, f"KL {kl:.3g} nats per reply is within gates.max_kl_nats = {gates.max_kl_nats:g}")


def _score_gain(gates: GatesSection, evidence: Evidence) -> Verdict:
    gate = "score_gain"
    gain = Gain(evidence.score_gain, evidence.score_gain_ci, 0)
    found = f"held-out score gain over the initial policy {_gain(gain)}"
    bound = f"gates.min_score_gain = {gates.min_score_gain:g}"
    low, _ = gain.ci
    if low is None:
        return Verdict(gate, False, f"{found}: prompts of a single dialogue don't tell whether it lies above {bound}")
    if low > gates.min_score_gain:
        return Verdict(gate, True, f"{found} lies above {bound}")
    return Verdict(gate, False, f"{found} does not lie above {bound}")


def _live_gain(gates: GatesSection, live: LiveEvidence) -> Verdict:
    gate, least = "live_gain", gates.min_gain_over_live
    if live.gain is None:
        why = "the live policy began from another initial policy, and this preference model can't score it"
        return Verdict(gate, True, why, f"{why}: people have to compare the two")
    found = f"held-out score gain over the live policy {_gain(live.gain)}"
    bound = f"gates.min_gain_over_live = {least:g}"
    if _surely_below(live.gain, least):
        return Verdict(gate, False, f"{found} lies below {bound}")
    remark = f"the snapshot's score is {live.gain.gain:+.3f} from the live policy's: it may be worse"
    return Verdict(gate, True, f"{found} does not lie below {bound}", remark if live.gain.gain < least else None)


def _gain_by_question(gates: GatesSection, evidence: Evidence) -> Verdict:
    gate, least = "gain_by_question", gates.min_gain_by_question
    bound = f"gates.min_gain_by_question = {least:g}"
    gains = {f"{question}, over the initial policy": gain for question, gain in evidence.score_gain_by_question.items()}
    if evidence.live is not None and not evidence.live.is_initial:
        over_live = evidence.live.gain_by_question
        gains |= {f"{question}, over the live policy": gain for question, gain in over_live.items()}
    surely_below = {where: gain for where, gain in gains.items() if _surely_below(gain, least)}
    if surely_below:
        return Verdict(gate, False, f"held-out score gain by question: {_gains(surely_below)}: below {bound}")
    below = {where: gain for where, gain in gains.items() if gain.gain < least}
    remark = f"the score may have fallen on a question: {_gains(below)}"
    return Verdict(
        gate, True, f"held-out score gain by question: {_gains(gains)}: not below {bound}", remark if below else None
    )


def _gains(gains: Mapping[str, Gain]) -> str:
    return "; ".join(f"{where}, {_gain(gain)}" for where, gain in gains.items())


def _surely_below(found: Gain, bound: float) -> bool:
    high = found.ci[1]
    return high is not None and high < bound


def _gain(found: Gain) -> str:
    low, high = ("?" if end is None else f"{end:+.3f}" for end in found.ci)
    return f"{found.gain:+.3f} [{low}, {high}]"


def _fresh_agreement(gates: GatesSection, fresh: FreshEvidence) -> Verdict:
    gate, witness = "fresh_agreement", f"the preference model of cycle {fresh.cycle}"
    turned = {question: part for question, part in fresh.parts.items() if part.contradicts}
    if not turned:
        fell = {question: part for question, part in fresh.parts.items() if part.fell}
        remark = f"{witness} judges this week's comparisons worse than its own: {_agreements(fell)}"
        found = f"this week's comparisons don't contradict {witness}: {_agreements(fresh.parts)}"
        return Verdict(gate, True, found, remark if fell else None)
    found = f"this week's comparisons contradict {witness} beyond chance: {_agreements(turned)}"
    if gates.contradicting_week == "report":
        return Verdict(gate, True, f'{found}; gates.contradicting_week = "report" lets it pass', found)
    return Verdict(gate, False, f"{found}: a person has to decide", holds=True)


def _agreements(parts: Mapping[str, Part]) -> str:
    return "; ".join(
        f"of {part.num_fresh}{'' if question == ALL else f' {question}'} it orders {part.fresh:.0%} as people did "
        f"(at most {part.fresh_high:.0%}), held out {part.held_out:.0%}"
        for question, part in parts.items()
    )


def _share(gate: str, what: str, found: float | None, name: str, bound: float) -> Verdict:
    if found is None:
        return Verdict(gate, False, f"it is not known how many {what}: the evaluation has no such prompts")
    passed = found <= bound
    return Verdict(gate, passed, f"{found:.1%} {what}, which is {'within' if passed else 'above'} {name} = {bound:g}")
