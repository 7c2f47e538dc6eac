"""What a report says about a cycle, as one typed object: gathered in `cycle.py`, read by rows, pictures and pages.

Its JSON is report.json of the report artifact and what `orchestrator cycle show --json` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.chat.refusals import RefusedRecords
from models.initial_policy.results import DistillationCourse
from models.policy.results import Evaluation, PPOResult
from models.preference.results import OrderedPairs, PreferenceModelResults
from models.runtime.results import IF_MEASURED, result_to_json
from orchestrator.cycles.cost import StageTime
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.contamination import DataCheckResults
from orchestrator.judging.elo import EloNumbers
from orchestrator.judging.forecasts import MixMatrix, Scaling
from orchestrator.judging.gates import LiveEvidence, Verdict
from orchestrator.judging.kl_law import CurveLaw, NoCurveLaw
from orchestrator.reports.detectors import FittedDetector
from orchestrator.reports.stops import Stop
from orchestrator.reports.weeks import Week


@dataclass(frozen=True)
class ListedSnapshot:
    """A snapshot that a run kept on its way, as a report lists it."""

    digest: str
    samples: int
    kl_nats: float
    score: float


@dataclass(frozen=True, kw_only=True)
class CycleNumbers:
    """Everything the ledger knows about a cycle's outcome. None, or empty, is what it has not come to."""

    cycle: int
    name: str
    artifact_ids: Mapping[str, int] = field(default_factory=dict)
    """By kind."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """The same artifacts'."""
    comparison_set: ComparisonSetResults | None = None
    data_check: DataCheckResults | None = None
    doubts: tuple[str, ...] = ()
    """What the preflight of the initial policy found, a sentence each."""
    distillation: DistillationCourse | None = None
    texts_refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Of those to distil on, by the teacher's chat template."""
    examples_refused: RefusedRecords | None = field(default=None, metadata=IF_MEASURED)
    """Of the openings to write prompts after, by the policy's."""
    preference_model: PreferenceModelResults | None = None
    scaling: Scaling | None = None
    mix_matrix: MixMatrix | None = None
    watcher: PreferenceModelResults | None = None
    """The preference model's twin."""
    orientation: OrderedPairs | None = None
    snapshot: str | None = None
    """Its digest."""
    training: PPOResult | None = None
    snapshots: tuple[ListedSnapshot, ...] = ()
    """Those on the way, by the samples that PPO had learned from."""
    kl_law: CurveLaw | NoCurveLaw | None = None
    evaluation: Evaluation | None = None
    """Of the snapshot; never of another policy."""
    initial_evaluation: Evaluation | None = None
    live: LiveEvidence | None = None
    """What was live when the snapshot was judged, and how the two compare."""
    live_evaluation: Evaluation | None = None
    best_of_n: Evaluation | None = None
    detector: FittedDetector | None = None
    elo: EloNumbers | None = None
    """From people's comparisons alone."""
    stops: tuple[Stop, ...] = ()
    waits: str | None = None
    """Why a person is asked, while nobody has decided."""
    decision: str | None = None
    reasons: tuple[Verdict, ...] = ()
    weeks: tuple[Week, ...] = ()
    """The cycles up to this one that decided on a snapshot, oldest first."""
    stages: tuple[StageTime, ...] = ()
    """In the order in which they began."""

    def to_json(self) -> dict[str, Any]:
        """The content of report.json; times are in it where there are any."""
        return result_to_json(self)
