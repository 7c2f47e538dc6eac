"""Sections about the loop around the trainings, and the whole: when a cycle begins, what is judged, what goes live."""

from __future__ import annotations

import difflib
import zoneinfo
from datetime import datetime
from typing import Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from orchestrator.config.base import PathText, Section
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

    min_comparisons: int = Field(500, ge=0, description="Fresh comparisons below which the cycle ends as skipped")


class EvaluationSection(Section):
    """How a snapshot is judged before people see it."""

    num_prompts: int = Field(256, ge=1)
    max_reply_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    best_of: int = Field(16, ge=1, description="Best-of-n of the initial policy, as a yardstick; 1 turns it off")
    best_of_prompts: int = Field(256, ge=1, description="Prompts for the yardstick, which costs n replies each")
    best_of_points: tuple[int, ...] = Field(
        (),
        description="Best of these k too, each at most best_of, from the same replies: points for the √KL picture; "
        "the paper: 1, 4, 16, 64",
    )
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _points_within(self) -> Self:
        for k in self.best_of_points:
            if not 1 <= k <= self.best_of:
                raise ValueError(
                    f"best_of_points asks for the best of {k}; expected 1 to best_of = {self.best_of}. Raise best_of "
                    "(and lower best_of_prompts: each costs best_of replies), or leave that point out"
                )
        return self


class GatesSection(Section):
    """What a snapshot must show to go live."""

    min_pm_accuracy: float = Field(0.5, ge=0, le=1, description="The PM's held-out accuracy interval must lie above it")
    min_score_gain: float = Field(
        0.0, description="Gain of the held-out score over the initial policy, lower bound above it"
    )
    max_kl_nats: float = Field(50.0, gt=0, description="KL per reply to the initial policy; must also be above 0")
    max_duplicate_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of replies that equal another prompt's, word for word; off where not given",
    )
    max_refusal_share: float | None = Field(
        None, ge=0, le=1, description="Share of ordinary requests refused, by a list of phrases; off where not given"
    )


class OodSection(Section):
    """A detector of requests far from what the policy was trained to answer, for the policy server's gate."""

    detector: Literal["relative", "mahalanobis", "exposure"] = Field(
        "relative", description="Distance less that of independent numbers; plain distance; or learnt from examples"
    )
    layer: int | None = Field(
        None, ge=0, description="Hidden layer to read, 0 the embeddings; chosen with the examples, or by depth"
    )
    home: Literal["helpful", "harmless"] = Field("helpful", description="Kind of the prompts that are not far")
    examples_file: PathText | None = Field(
        None, description="Prompts that should be found: .txt, one a line, or JSONL of {prompt} or {messages}"
    )
    quantile: float = Field(0.99, gt=0, le=1, description="Share of unseen prompts of home within the threshold")
    max_prompts: int = Field(4096, ge=8, description="Prompts of home to read, drawn by hash")
    l2: float = Field(1e-3, gt=0, description="Penalty on the weights of `exposure`; raise it for few examples")
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _examples_to_learn_from(self) -> Self:
        if self.detector == "exposure" and self.examples_file is None:
            raise ValueError("detector 'exposure' learns from examples; give examples_file, or take another detector")
        return self


class ServingSection(Section):
    """How live policies answer raters. Equal for every contestant."""

    max_reply_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1, description="1: raters prefer policies sampled as they were trained")


class ScheduleSection(Section):
    """When `orchestrator register` lets the cycle run by itself."""

    cron: str = Field("0 6 * * 1", description="Weekly, Monday at 6")
    timezone: str = Field("UTC", description="IANA time zone of the schedule")

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


class CycleConfig(Section):
    """Everything a cycle is told."""

    name: str = Field("default", min_length=1, max_length=80)
    seed: int = Field(0, ge=0, lt=2**31)
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
    ood: OodSection | None = None
    """Where given, each cycle fits a detector."""
    serving: ServingSection = ServingSection()
    schedule: ScheduleSection = ScheduleSection()
