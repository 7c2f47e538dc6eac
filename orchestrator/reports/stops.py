"""What stopped a cycle, or its PPO: at which stage, by what check, with which figures, what is kept, what to do next.

`stops_of` reads it from the ledger and `stop_lines` writes it; both for `orchestrator/reports/cycle.py`. A cycle that a
stage ended stays open: the next run of it goes on there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.policy.results import LEARNED_WIRES, PPOResult
from orchestrator.store.acts import said_of
from orchestrator.store.verdicts import failed_said

REPORT = "write_report"
DOCS = "docs/guides/when-it-stops.md, “Which tripwire stopped PPO, and what now?”"

# What refused, by the type of the error with which a stage ended. Every other type is a crash: something broke that
# was not looked at.
CHECKS = {
    "CycleError": "the stage's check of what it was given",
    "ConfigError": "the check of the configuration",
    "ArtifactError": "the check of the artifacts",
    "ImportFileError": "the check of a file",
    "JobRefused": "the job's check of what it was given",
    "DiskFull": "a full disk",
    "CycleCancelled": "whoever gave the cycle up",
}
# Stages that exist to check say which check it is.
CHECKING_STAGES = {"check_preference_model": "the check of signs", "check_data": "the check of the data"}

# Errors that name a setting or an input: the same run again would end alike.
NAMES_A_SETTING = ("ConfigError", "JobRefused")

# What to do in the next cycle, whose configuration may differ.
_FAULT = (
    'promote nothing of this run. In bfloat16 train with `ppo.precision = "float32"`; in float32 it is a fault of the '
    "program: report it, and don't raise the bound."
)
_OTHER_SAMPLER = (
    "promote nothing of this run; look for a sampler with old weights or a cut distribution, and don't raise the bound."
)
WIRE_ADVICE = {
    "not_finite": "lower `ppo.learning_rate`, or train in float32; the same seed breaks in the same iteration.",
    "start_kl": _FAULT,
    "impossible_kl": _OTHER_SAMPLER,
    "kl_drift": _OTHER_SAMPLER,
    "first_ratio": _FAULT,
    "ratio": "lower `ppo.learning_rate` or `ppo.epochs`, or raise `ppo.minibatch_replies`.",
    "clip_fraction": "lower `ppo.learning_rate` or `ppo.epochs`, or raise `ppo.minibatch_replies`.",
    "entropy": "raise `ppo.kl_coef`, or lower `ppo.iterations`; read the replies first.",
    "duplicates": "raise `ppo.kl_coef`; where the most frequent reply below is a refusal, lower "
    "`prompts.harmless_weight`.",
    "repetition": "raise `ppo.kl_coef`, or lower `ppo.iterations`; let raters compare some that repeat themselves.",
    "length": "raise `ppo.kl_coef`, or lower `ppo.iterations`; collect comparisons in which the other length wins.",
    "truncation": "raise `ppo.kl_coef`, or `ppo.max_reply_tokens` where replies are meant to be long; collect "
    "comparisons in which short replies win.",
    "twin_gap": "lower `ppo.iterations` or raise `ppo.kl_coef`, and collect more comparisons before more PPO; don't "
    "raise the bound for a higher score.",
    "max_kl_nats": "nothing, where the policy was to go that far. To learn more within the limit, raise `ppo.kl_coef` "
    "or lower `ppo.learning_rate`.",
}
TOO_FAST = (
    "lower `ppo.learning_rate` (it was {rate:g}): the first steps went beyond the bound, and nothing is kept of them."
)
# Wires that are looked at after learning from a rollout; the rollout itself was good.
AFTER_LEARNING = ("first_ratio", "ratio", "clip_fraction")
GATE_ADVICE = {
    "pm_accuracy": "collect more comparisons, and read the preference model's most confident mistakes below.",
    "pm_accuracy_by_question": "collect comparisons of that question, and read the mistakes on it; where its labels "
    "are turned round at one source, look at the import.",
    "kl": "at 0 raise `ppo.learning_rate` or `ppo.iterations`, unless PPO was stopped (see there); above the bound "
    "raise `ppo.kl_coef`.",
    "score_gain": "train longer, or on more comparisons; more `evaluation.num_prompts` make the interval narrower.",
    "live_gain": "nothing: the live policy stays, and the next cycle trains from the start again on more comparisons.",
    "gain_by_question": "collect more comparisons of the question that lost, or change `prompts.harmless_weight`.",
    "fresh_agreement": "read this week's comparisons at the desk, by rater; withdraw raters whose labels are turned "
    "round. Where people mean what they say, the policy has outgrown the last preference model: decide for it by hand.",
    "duplicates": "raise `ppo.kl_coef`, or take fewer iterations.",
    "refusals": "lower `prompts.harmless_weight`, or collect more helpful comparisons.",
}


@dataclass(frozen=True)
class Stop:
    """One stop, in words for the operator."""

    stage: str
    by: str
    found: str
    kept: str
    next: str


def stops_of(
    session: Session, cycle_id: int, training: PPOResult | None, snapshot: str | None, failure: str | None
) -> list[Stop]:
    """Every stop of the cycle as it stands now, in the order of the stages; empty for one that goes on, or ended well.

    `training` are the results of its PPO run and `snapshot` their digest, where it has come that far. `failure` is what
    ended the cycle's run just now, as "Type: message"; the ledger alone can't tell a killed process from one at work.
    """
    cycle = session.get_one(t.Cycle, cycle_id)
    decision = session.scalars(
        select(t.Decision).where(t.Decision.cycle_id == cycle_id).order_by(t.Decision.id.desc()).limit(1)
    ).first()
    live = _live(session, cycle.ended_at or datetime.now(UTC))
    stops = []
    if training is not None and training.stopped:
        stops.append(_ppo_stop(training, training.stopped, snapshot))
    if decision is not None and decision.decision == "refuse":
        stops.append(_refusal(decision, live, snapshot))
    rows = list(session.scalars(select(t.Stage).where(t.Stage.cycle_id == cycle_id).order_by(t.Stage.id)))
    ended = _ended_by(rows, failure)
    if ended is not None:
        stops.append(_stage_stop(cycle, *ended, live, snapshot))
    return stops


def stop_lines(stops: Sequence[Stop]) -> list[str]:
    """The stops in Markdown, for the top of the report."""
    lines = []
    for stop in stops:
        # The end of a job's log comes with the reason; it would be one paragraph without its line ends.
        reason, *log = stop.found.splitlines()
        lines += [f"**Stopped** at `{stop.stage}` by {stop.by}: {reason}", ""]
        if log:
            lines += ["```", *(line.replace("```", "'''") for line in log), "```", ""]
        lines += [f"- Kept: {stop.kept}", f"- Next: {stop.next}", ""]
    return lines


def _ppo_stop(training: PPOResult, stopped: str, snapshot: str | None) -> Stop:
    wire = training.watch.stopped_by if training.watch is not None else None
    if wire is not None:
        by = f"the tripwire `{wire}`"
    elif "max_kl_nats" in stopped:
        wire, by = "max_kl_nats", "the limit `ppo.max_kl_nats`"
    else:
        wire, by = "not_finite", "the check that its numbers are finite"
    kept = kept_iterations(training)
    advice = WIRE_ADVICE[wire]
    if kept == 0 and wire in LEARNED_WIRES and training.learning_rate is not None:
        advice = TOO_FAST.format(rate=training.learning_rate)
    of = "of the start" if kept == 0 else f"after iteration {kept}"
    return Stop(
        stage="train_policy",
        by=by,
        found=stopped + _after_recoveries(training),
        kept=f"the last good weights, those {of}, are the snapshot `{snapshot}`, evaluated and gated like any other.",
        next=f"{advice} More in {DOCS}.",
    )


def _after_recoveries(training: PPOResult) -> str:
    """That PPO had gone back and learned slower before; nothing where it never did."""
    if not training.recoveries:
        return ""
    count, rate = len(training.recoveries), training.recoveries[-1].learning_rate
    times = "once" if count == 1 else f"{count} times"
    return f"; it had gone back to good weights {times} before, the last time on at a learning rate of {rate:.3g}"


def kept_iterations(training: PPOResult) -> int:
    """After how many iterations PPO had the weights that a stopped run keeps: those of its last rollout without alarm.

    The curve has a point for each rollout that was learned from. A snapshot at KL 0 is the start, whatever the count.
    """
    if training.kl_nats == 0:
        return 0
    if training.kept_iteration is not None:
        return training.kept_iteration
    alarms = training.watch.alarms if training.watch is not None else ()
    beyond = {alarm.iteration for alarm in alarms if alarm.wire not in AFTER_LEARNING}
    return max((i for i in range(len(training.curve)) if i + 1 not in beyond), default=0)


def _refusal(decision: t.Decision, live: str, snapshot: str | None) -> Stop:
    if decision.evidence["kl_nats"] == 0:
        paired = "has the initial policy's weights, so that raters are not asked to compare the two"
    else:
        paired = "is put before people beside the initial policy and what was live"
    by, found, advice = _refused_by_a_person(decision) if decision.approval_id else _refused_by_gates(decision)
    return Stop(
        stage="decide_promotion",
        by=by,
        found=found,
        kept=f"{live}; the refused snapshot `{snapshot}` {paired}.",
        next=advice,
    )


def _refused_by_gates(decision: t.Decision) -> tuple[str, str, str]:
    failed = [reason for reason in decision.reasons if not reason["passed"]]
    gates = " and ".join(f"`{reason['gate']}`" for reason in failed)
    return (
        f"the gate{'s' if len(failed) > 1 else ''} {gates}",
        failed_said(decision.reasons, decision.evidence.get("kl_nats")),
        " ".join(f"`{reason['gate']}`: {GATE_ADVICE[reason['gate']]}" for reason in failed),
    )


def _refused_by_a_person(decision: t.Decision) -> tuple[str, str, str]:
    """Who refused it, why, and how it goes live all the same; of what nobody decided, that nobody did."""
    again = "`orchestrator promote DIGEST --reason TEXT` puts the snapshot live all the same."
    return said_of(decision.decided_by, decision.identity), decision.note or "", again


def _stage_stop(cycle: t.Cycle, stage: str, error: str, live: str, snapshot: str | None) -> Stop:
    kind, _, message = error.partition(": ")
    check = CHECKING_STAGES.get(stage) if kind in CHECKS else None
    by = check or CHECKS.get(kind) or f"a crash ({kind})"
    made = f"; the snapshot `{snapshot}` is trained" if snapshot else ""
    cancel = f"give it up with `orchestrator cycle cancel {cycle.number}`"
    if cycle.state != "open":
        what = f"nothing: the cycle is {cycle.state}."
    elif kind in NAMES_A_SETTING:
        what = (
            "change the setting that is named, or put right the input; as it is, the cycle ends alike. It keeps the "
            f"configuration that it was opened with: to change that, {cancel}, then run a cycle anew, with "
            "`--set cycle.min_comparisons=0` where too few comparisons came since. Finished stages are found by it too."
        )
    elif kind in CHECKS:
        what = f"put right what is named and run the cycle again, or {cancel}."
    else:
        what = f"run the cycle again; it goes on from the last checkpoint. If it ends alike, see the log, or {cancel}."
    return Stop(stage, by, message or error, f"{live}{made}; finished stages are found by the next run.", what)


def _ended_by(rows: Sequence[t.Stage], failure: str | None) -> tuple[str, str] | None:
    """The stage that ended the cycle's run, and its error; None where the cycle went on since, or nothing did."""
    newest = {row.name: row for row in rows}
    # A report that could not be written is no reason to hide why it was to be.
    failed = sorted(
        (row for row in newest.values() if row.state == "failed"), key=lambda row: (row.name != REPORT, row.id)
    )
    for row in reversed(failed):
        # What a run on the pool failed with stands inside the words of the run that waited for it.
        if failure is not None and row.error is not None and row.error in failure:
            return row.name, row.error
    tried = [row for row in rows if row.name != REPORT]
    if failed and not _gone_on_since(failed[-1], tried):
        return failed[-1].name, failed[-1].error or "no reason was kept"
    if failure is None:
        return None
    running = [row.name for row in tried if newest[row.name] is row and row.state == "running"]
    return (running or [row.name for row in tried] or ["cycle"])[-1], failure


def _gone_on_since(failed: t.Stage, rows: Sequence[t.Stage]) -> bool:
    ended_at = failed.ended_at
    return ended_at is not None and any(row.started_at > ended_at for row in rows)


def _live(session: Session, at: datetime) -> str:
    """What answers raters, or answered them when the cycle ended."""
    query = (
        select(t.Artifact.digest)
        .join(t.Deployment, t.Deployment.snapshot_id == t.Artifact.id)
        .where(t.Deployment.started_at <= at, (t.Deployment.ended_at.is_(None)) | (t.Deployment.ended_at > at))
    )
    digest = session.scalars(query.order_by(t.Deployment.id.desc()).limit(1)).first()
    return f"the live policy `{digest}` answers raters as before" if digest else "no policy was live yet"
