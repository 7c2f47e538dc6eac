"""Sections about the loop around the trainings, and the whole: when a cycle begins, what is judged, what goes live."""

from __future__ import annotations

import difflib
import itertools
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import field_validator, model_validator
from pydantic.dataclasses import dataclass

from models.detectors.settings import OodSettings
from models.policy.settings import JudgedReplies, check_points
from orchestrator.config.base import STRICT, PathText, Section, Threads, key
from orchestrator.config.initial_policy import InitialPolicySection
from orchestrator.config.policy import PPOSection, PromptsSection
from orchestrator.config.preference import (
    ComparisonsSection,
    OrientationSection,
    PMPSection,
    PreferenceModelSection,
    ReferenceSection,
)


class CycleSection(Section):
    """When a cycle may begin."""

    min_comparisons: int = key(
        500,
        "Fresh comparisons below which the cycle ends as skipped.",
        unit="comparisons",
        raised="cycles are rarer, and each learns from more",
        at_least=0,
    )
    second_trigger: Literal["refuse", "queue"] = key(
        "refuse",
        "What becomes of a run that is started while another is in progress: refused, or queued until that one ends.",
    )
    abandon_after_hours: float | None = key(
        None,
        "When a scheduled run gives up an open cycle with another configuration: nothing works on it, nobody is asked "
        "to approve, and nothing came of it for so long. 24, or half the schedule's period where that is shorter, "
        "where not given; 0: never.",
        unit="hours",
        raised="a stopped cycle keeps the next one waiting for longer",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationSection(JudgedReplies, Threads):
    """How a snapshot is judged before people see it."""

    best_of: int = key(
        16,
        "Best-of-n of the initial policy, as a yardstick; 1 turns it off.",
        unit="replies",
        raised="a stronger yardstick, at n replies a prompt",
        at_least=1,
    )
    best_of_prompts: int = key(
        256,
        "Prompts for the yardstick; no more than num_prompts are taken.",
        unit="prompts",
        raised="a narrower interval of the yardstick, at best_of replies each",
        at_least=1,
    )
    best_of_points: tuple[int, ...] = key(
        (),
        "Best of these k too, each at most best_of, from the same replies: points for the √KL picture; the paper: 1, "
        "4, 16, 64.",
        unit="replies",
        raised="points further along √KL; they cost nothing more",
    )

    def check(self) -> None:
        super().check()
        check_points(self.best_of_points, self.best_of)


class GatesSection(Section):
    """What a snapshot must show to go live."""

    min_pm_accuracy: float = key(
        0.5,
        "The interval of the preference model's held-out accuracy must lie above it.",
        unit="share",
        raised="only snapshots of a better preference model go live",
        at_least=0,
        at_most=1,
    )
    min_pm_accuracy_by_question: float = key(
        0.5,
        "The interval of the preference model's held-out accuracy on the comparisons of one question must not lie "
        "wholly below it; an accuracy below it is a remark.",
        unit="share",
        raised="only snapshots of a preference model that knows each question go live",
        at_least=0,
        at_most=1,
        new=True,
    )
    contradicting_week: Literal["hold", "report"] = key(
        "hold",
        "What to do where this week's comparisons contradict the last preference model beyond chance: hold the "
        "snapshot for a person, or only report it.",
        new=True,
    )
    min_score_gain: float = key(
        0.0,
        "The interval of the gain of the held-out score over the initial policy must lie above it.",
        unit="PM units",
        raised="only snapshots that gained more go live",
    )
    min_gain_over_live: float = key(
        0.0,
        "The interval of the gain of the held-out score over the live policy must not lie wholly below it; a gain "
        "below it is a remark.",
        unit="PM units",
        raised="snapshots that are little better than the live policy are refused",
        new=True,
    )
    min_gain_by_question: float = key(
        0.0,
        "The 99 % interval of the gain on the prompts of one question, over the initial and over the live policy, must "
        "not lie wholly below it; questions with fewer than 10 prompts are not looked at.",
        unit="PM units",
        raised="snapshots that pay for one question with another are refused",
        new=True,
    )
    max_kl_nats: float = key(
        50.0,
        "KL to the initial policy that a snapshot may have at most; it must also be above 0.",
        unit="nats per reply",
        raised="snapshots further from the initial policy may go live",
        above=0,
    )
    max_duplicate_share: float | None = key(
        None,
        "Share of replies that equal another prompt's, word for word; not looked at where not given.",
        unit="share",
        raised="more monotonous snapshots may go live",
        at_least=0,
        at_most=1,
    )
    max_refusal_share: float | None = key(
        None,
        "Share of ordinary requests that are refused, by a list of phrases; not looked at where not given.",
        unit="share",
        raised="snapshots that refuse more may go live",
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OodSection(OodSettings, Threads):
    """A detector of requests far from what the policy was trained to answer, which the policy server can ask."""

    examples_file: PathText | None = key(
        None, "Prompts that should be found: .txt, one a line, or JSONL of {prompt} or {messages}."
    )

    def check(self) -> None:
        super().check()
        if self.detector == "exposure" and self.examples_file is None:
            raise ValueError("detector 'exposure' learns from examples; give examples_file, or take another detector")


class ApprovalSection(Section):
    """Whether a person has the last word on a promotion. A snapshot that a gate refuses is not asked about."""

    required: bool = key(
        False, "Whether a snapshot that passed every gate waits until a person says promote or refuse."
    )
    timeout_hours: float = key(
        48.0,
        "Then it is refused, because nobody decided; where `required`, shorter than the time between two cycles of the "
        "schedule.",
        unit="hours",
        raised="people have longer to decide, and the live policy stays as long",
        above=0,
    )


class ServingSection(Section):
    """How live policies answer raters. Equal for every contestant."""

    max_reply_tokens: int = key(
        128,
        "Longest reply that raters see; longer ones are cut off there.",
        unit="tokens",
        raised="longer replies fit, and raters wait longer",
        at_least=1,
    )
    temperature: float = key(
        1.0,
        "Of sampling; 1 shows the policy as it was trained.",
        unit="factor on the log-probs' scale",
        raised="more varied replies, with more slips",
        above=0,
    )
    top_p: float = key(
        1.0,
        "Share of probability, from the likeliest token down, that is sampled from; 1: raters prefer policies sampled "
        "as they were trained.",
        unit="share",
        raised="rarer tokens may be sampled",
        above=0,
        at_most=1,
    )


class ScheduleSection(Section):
    """When `orchestrator register` lets the cycle run by itself."""

    cron: str = key("0 6 * * 1", "When a cycle begins: minute, hour, day, month, weekday. Monday at 6 by default.")
    timezone: str = key("UTC", "IANA time zone of the schedule.")

    @field_validator("cron")
    @classmethod
    def _comes_round(cls, expression: str) -> str:
        # Seconds, as a sixth field, stand last for Prefect and first for cronsim.
        reason = "it has another number of fields"
        if len(expression.split()) == 5:
            try:
                next(CronSim(expression, datetime(2000, 1, 1)))
                return expression
            except StopIteration:
                reason = "such a day never comes"
            except CronSimError as error:
                reason = str(error).lower()
        raise ValueError(
            f"expected a cron expression of five fields (minute, hour, day, month, weekday), such as 0 6 * * 1 for "
            f"Mondays at six; {reason}"
        )

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            near = difflib.get_close_matches(name, zoneinfo.available_timezones(), 1)
            raise ValueError(
                "expected an IANA time zone, such as UTC or Europe/Berlin"
                + (f"; did you mean {near[0]}?" if near else "")
            ) from None
        return name

    def period(self) -> timedelta:
        """The shortest time between two cycles, of the next hundred; a change to summer time shortens it by an hour."""
        begins = CronSim(self.cron, datetime(2025, 1, 1, tzinfo=zoneinfo.ZoneInfo(self.timezone)))
        times = [time.astimezone(UTC) for time in itertools.islice(begins, 100)]
        return min(later - earlier for earlier, later in itertools.pairwise(times))


class CycleConfig(Section):
    """Everything a cycle is told."""

    name: str = key(
        "default",
        "The project. Cycles of one name share a reference set, and are compared with each other.",
        min_length=1,
        max_length=80,
    )
    seed: int = key(
        0,
        "What all randomness of a cycle is drawn from; one seed gives one result, on CPU to the last digit.",
        unit="none",
        raised="another draw, neither better nor worse",
        at_least=0,
        below=2**31,
    )
    initial_policy: InitialPolicySection
    cycle: CycleSection = CycleSection()
    comparisons: ComparisonsSection = ComparisonsSection()
    pmp: PMPSection = PMPSection()
    preference_model: PreferenceModelSection = PreferenceModelSection()
    reference: ReferenceSection = ReferenceSection()
    orientation: OrientationSection = OrientationSection()
    prompts: PromptsSection = PromptsSection()
    ppo: PPOSection = PPOSection()
    evaluation: EvaluationSection = EvaluationSection()
    gates: GatesSection = GatesSection()
    ood: OodSection | None = key(None, "Where given, each cycle fits a detector.")
    approval: ApprovalSection = key(ApprovalSection(), "Who has the last word on a promotion.", new=True)
    serving: ServingSection = ServingSection()
    schedule: ScheduleSection = ScheduleSection()

    @model_validator(mode="after")
    def _decided_before_the_next_cycle(self) -> Self:
        period_h = self.schedule.period() / timedelta(hours=1)
        if self.approval.required and self.approval.timeout_hours >= period_h:
            raise ValueError(
                f"approval.timeout_hours: found {self.approval.timeout_hours:g}; expected less than the {period_h:g} "
                f'hours between two cycles (schedule.cron = "{self.schedule.cron}"), or the next cycle would find this '
                "one waiting. Lower it, or let cycles begin less often"
            )
        return self

    def approval_timeout(self) -> timedelta:
        """How long a promotion waits for a person; where others than the configuration ask, half a period at most."""
        wanted, period = timedelta(hours=self.approval.timeout_hours), self.schedule.period()
        return wanted if wanted < period else period / 2
