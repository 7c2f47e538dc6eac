"""What a snapshot must show to go live. Pure: numbers in, verdicts with their reasons out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config import GatesSection


@dataclass(frozen=True)
class Verdict:
    """One gate's answer; `reason` says the number, the bound and the setting it came from."""

    gate: str
    passed: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As stored on the decision."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """The numbers the gates look at. Intervals are 95 %; scores and KL are per reply, KL in nats."""

    pm_accuracy: float | None
    pm_accuracy_ci: tuple[float, float] | None
    num_held_out: int
    score_gain: float
    score_gain_ci: tuple[float, float]
    kl_nats: float
    duplicate_share: float | None = None
    refusal_share: float | None = None
    """Of ordinary requests."""
    num_dialogues: int | None = None
    """That the held-out comparisons are from; None where that is not known."""

    def to_json(self) -> dict[str, Any]:
        """As stored on the decision."""
        return asdict(self)


def judge(gates: GatesSection, evidence: Evidence) -> list[Verdict]:
    """Every gate's verdict; the snapshot goes live where all have passed."""
    verdicts = [_pm_accuracy(gates, evidence), _kl(gates, evidence), _score_gain(gates, evidence)]
    if gates.max_duplicate_share is not None:
        verdicts.append(_share("duplicates", "of replies equal another one", evidence.duplicate_share,
                               "gates.max_duplicate_share", gates.max_duplicate_share))  # fmt: skip
    if gates.max_refusal_share is not None:
        verdicts.append(_share("refusals", "of ordinary requests are refused", evidence.refusal_share,
                               "gates.max_refusal_share", gates.max_refusal_share))  # fmt: skip
    return verdicts


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
    low, high = evidence.score_gain_ci
    found = f"held-out score gain over the initial policy {evidence.score_gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    bound = f"gates.min_score_gain = {gates.min_score_gain:g}"
    if low > gates.min_score_gain:
        return Verdict(gate, True, f"{found} lies above {bound}")
    return Verdict(gate, False, f"{found} does not lie above {bound}")


def _share(gate: str, what: str, found: float | None, name: str, bound: float) -> Verdict:
    if found is None:
        return Verdict(gate, False, f"it is not known how many {what}: the evaluation has no such prompts")
    passed = found <= bound
    return Verdict(gate, passed, f"{found:.1%} {what}, which is {'within' if passed else 'above'} {name} = {bound:g}")
