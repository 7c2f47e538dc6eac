"""The numbers of a cycle that measured everything a report can tell, for tests of its rows and of its page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.detectors.results import Beyond, Examples, OtherPrompts
from models.initial_policy.results import DistillationCourse
from models.policy.results import (
    BestOfPoint,
    CurvePoint,
    EvaluationPart,
    JudgedReply,
    LastSignals,
    LogpAccuracy,
    LogpPoint,
    RaisedAlarm,
    Recovery,
    RolloutSignals,
    WatchResult,
)
from models.preference.results import Accuracy, BandReliability, Calibration, Reference, Reliability, WatcherPart
from models.statistics.reply_signals import CollapseSignals
from models.statistics.scaling import ScalingPoint, fit_scaling
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.contamination import DataCheckResults, OverlapCounts
from orchestrator.judging.elo import EloAgainstLive, EloNumbers
from orchestrator.judging.forecasts import Scaling
from orchestrator.judging.gates import Gain, LiveEvidence, Verdict
from orchestrator.judging.kl_law import curve_law
from orchestrator.reports.detectors import FittedDetector
from orchestrator.reports.numbers import CycleNumbers, ListedSnapshot
from orchestrator.reports.stops import Stop
from orchestrator.reports.weeks import Week
from tests.orchestrator.published_results import held_out_report, preference_model
from tests.orchestrator.reports.policy_results import BARE_PPO, evaluation

DIGEST = "sha256:" + "0123456789abcdef" * 4


def accuracy(value: float, n: int = 40) -> Accuracy:
    return Accuracy(accuracy=value, ci=(value - 0.1, value + 0.1), n=n)


def reply(text: str, score: float, prompt: str = "1", kind: str = "helpful", asked: str = "Hello?") -> JudgedReply:
    return JudgedReply(
        prompt_id=prompt,
        kind=kind,
        messages=[{"role": "user", "content": asked}],
        reply=text,
        score=score,
        kl_nats=1.0,
        reply_tokens=3,
        truncated=False,
    )


def collapse(refusals: float = 0.1) -> CollapseSignals:
    return CollapseSignals(
        distinct_1=0.2,
        distinct_2=0.5,
        duplicates=0.1,
        stock_reply=0.1,
        stock_reply_text="I can't",
        stock_opening=0.1,
        stock_opening_text=None,
        repeated_ngrams=0.0,
        refusals=refusals,
    )


def judged(score: float, **rest: Any) -> Any:
    """An evaluation with this score on helpful and on harmless prompts alike."""
    part = EvaluationPart(score, (score - 0.1, score + 0.1), 1.0, num_prompts=40, collapse=collapse())
    given = {"num_prompts": 80, "reply_tokens": 10.0, "entropy": 2.0, "collapse": collapse(), "watcher_score": score}
    return evaluation(
        pm_score=score, pm_score_ci=part.pm_score_ci, by_kind={"helpful": part, "harmless": part}, **(given | rest)
    )


def _training() -> Any:
    curve = tuple(
        CurvePoint(samples=64 * i, kl_nats=0.04 * i * i, score=0.5 * i, kl_coef=0.1, entropy=2.0, reply_tokens=9.0,
                   score_watcher=0.4 * i)
        for i in range(12)
    )  # fmt: skip
    start = RolloutSignals(0.0, 0.1, 64, 2.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    end = LastSignals(**(vars(start) | {"score": 2.0, "score_watcher": 1.0, "twin_gap": 1.0}))
    logp = LogpAccuracy(
        pairs={"helpful": 64, "harmless": 64},
        preference_model={"helpful": 0.75, "harmless": 0.75},
        curve=(LogpPoint(0, helpful=0.5, harmless=0.5), LogpPoint(64, helpful=0.6, harmless=0.6)),
    )
    watch = WatchResult(None, (RaisedAlarm(3, "length", ""),), start, end)
    recoveries = (Recovery(iteration=4, wire="entropy", found="", back_to=2, learning_rate=1e-4),)
    return replace(
        BARE_PPO, settings={"learning_rate": 1e-4}, curve=curve, watch=watch, logp_accuracy=logp, recoveries=recoveries
    )


def _model(**rest: Any) -> Any:
    bin_free: dict[str, Any] = {"n": 40, "expected_calibration_error": 0.02, "error_by_chance": 0.01, "bins": ()}
    of = Reliability(**bin_free, slope=1.0, slope_ci=(0.8, 1.2))
    band = BandReliability(**bin_free, slope=1.0, slope_ci=(0.8, 1.2), low=0.0, high=1.0)
    calibration = Calibration(
        **vars(of),
        by_tranche={},
        by_question={"helpful": of, "harmless": of},
        by_score_band={"lowest third": band},
    )
    held_out = held_out_report(
        accuracy=0.7,
        ci=(0.65, 0.75),
        n=400,
        dialogues=300,
        by_question={"helpful": accuracy(0.7), "harmless": accuracy(0.6)},
        by_source={"feedback": accuracy(0.7)},
        by_tranche={"base": accuracy(0.7), "online": accuracy(0.6)},
        calibration=calibration,
    )
    return preference_model(
        held_out,
        skills=held_out_report(by_source={"sums": accuracy(0.6)}),
        choices={"learning_rate": 1e-3},
        offset=0.5,
        reference=Reference(sha256="ab", num_pairs=4, too_long=0),
        **rest,
    )


def _scaling() -> Scaling:
    fit = fit_scaling([ScalingPoint(10**6, 100 * 2**k, 0.55 + 0.02 * k, 300) for k in range(4)])
    return Scaling(**vars(fit), source="the ledger", points=(), left_out={"seed": 1})


def _twin() -> Any:
    part = WatcherPart(
        twin="opening", part="watcher", n=40, production_accuracy=0.7, watcher_accuracy=0.65,
        slope_per_ln_comparisons=0.01, cost=0.02, cost_ci=(0.0, 0.04), method="slope", num_production=130,
        num_watcher=70, production_share=0.65,
    )  # fmt: skip
    return _model(twin=part)


def _data() -> dict[str, Any]:
    overlap = OverlapCounts(
        file="bench.csv", texts=2, texts_met=1, comparisons=1, by_part={"train": 1}, prompts=1, in_prompt=1,
        whole_message=1, examples=("1",),
    )  # fmt: skip
    check = DataCheckResults(
        comparisons=400, prompts=300, repeated_prompts=1, openings=300, repeated_openings=1,
        repeated_openings_verbatim=1, openings_in_several_parts=0, identical_replies=0, repeated_votes=0,
        contradicted=0, against=(overlap,),
    )  # fmt: skip
    return {
        "comparison_set": ComparisonSetResults(
            num_comparisons=400, num_train=300, num_held_out=100, excluded={"tie": 3}, num_fresh=100
        ),
        "data_check": check,
        "distillation": DistillationCourse(
            prompt_version="hhh-1",
            num_tokens=400,
            held_out_kl_before=1.0,
            held_out_kl_after=0.2,
            distillation_curve=(),
        ),
    }


def _detector() -> FittedDetector:
    beyond = Beyond(n=10, beyond=1, share=0.1, ci=(0.0, 0.4))
    return FittedDetector(
        digest=DIGEST, kind="relative", layer=1, layer_chosen_by="rule", threshold=1.0, num_fit=10, num_validation=10,
        num_examples=5, left_out=0, false_alarms=beyond,
        examples=Examples(auroc_by_layer={"1": 0.9}, length_auroc=0.6),
        others=OtherPrompts(**vars(beyond), auroc=0.8, length_auroc=0.6),
    )  # fmt: skip


def whole_cycle(**rest: Any) -> CycleNumbers:
    """Cycle 3, promoted; people compared its snapshot."""
    training = _training()
    gain = Gain(0.4, (0.2, 0.6), 80)
    known: dict[str, Any] = _data() | {
        "preference_model": _model(),
        "scaling": _scaling(),
        "watcher": _twin(),
        "snapshot": DIGEST,
        "digests": {"comparison_set": DIGEST, "preference_model": DIGEST, "snapshot": DIGEST},
        "training": training,
        "snapshots": (ListedSnapshot(DIGEST, 64, 0.1, 0.5),),
        "kl_law": curve_law(training.curve),
        "evaluation": judged(2.0),
        "initial_evaluation": judged(1.0),
        "live_evaluation": judged(1.6),
        "live": LiveEvidence(7, DIGEST, False, gain),
        "best_of_n": evaluation(best_of=4, best_of_points=(BestOfPoint(4, 0.6, 2.0, (1.8, 2.2)),)),
        "detector": _detector(),
        "elo": EloNumbers(
            80.0, (40.0, 120.0), 200, 120, 70, 10, 300, EloAgainstLive(30.0, (5.0, 55.0), 100, 55, 40, 5, DIGEST)
        ),
        "decision": "promote",
        "reasons": (Verdict("kl", True, "KL 1 is within gates.max_kl_nats = 50"),),
        "stops": (
            Stop("train_policy", "the tripwire `length`", "too long\nlog line", "nothing", "lower `ppo.epochs`"),
        ),
        "weeks": (Week(cycle=3, decision="promote", elo=80.0, elo_ci=(40.0, 120.0), helpful=accuracy(0.7)),),
    }
    return CycleNumbers(**({"cycle": 3, "name": "small"} | known | rest))
