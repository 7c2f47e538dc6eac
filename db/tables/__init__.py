"""Every table of the product, grouped by who writes its rows.

`people` raters and imports; `erasures` who was forgotten; `access` how people come in; `queues` who may do what;
`notices` what the desk and raters tell each other; `dialogues` what raters wrote, saw and chose; `contestants` who can
answer them; `ledger` cycles, artifacts, lineage and deployments; `operations` who steers, and what waits for
them. The migrations in `migrations/` must produce exactly
these tables; a test compares the two.
"""

from db.tables.access import ApiKey, Consent, Invitation, InvitationUse, RaterSession, Study, Visit
from db.tables.base import Base
from db.tables.contestants import Contestant, Pairing
from db.tables.dialogues import (
    Candidate,
    Comparison,
    Dialogue,
    Freeze,
    FreshComparison,
    FrozenComparison,
    FrozenWithdrawal,
    Message,
    Pair,
)
from db.tables.erasures import ErasedArtifact, ErasedComparison, Erasure
from db.tables.ledger import (
    Artifact,
    Cycle,
    Decision,
    Deployment,
    Evaluation,
    LineageEdge,
    Stage,
)
from db.tables.notices import Announcement, ProblemReport
from db.tables.operations import (
    Approval,
    CycleRun,
    InstanceIdentity,
    InstructionVersion,
    Operator,
    OperatorAct,
    StageMetrics,
    StageProgress,
)
from db.tables.people import Import, QuarantinedRecord, Rater, Withdrawal
from db.tables.queues import GroupMembership, Queue, RaterGroup

__all__ = [
    "Announcement",
    "ApiKey",
    "Approval",
    "Artifact",
    "Base",
    "Candidate",
    "Comparison",
    "Consent",
    "Contestant",
    "Cycle",
    "CycleRun",
    "Decision",
    "Deployment",
    "Dialogue",
    "ErasedArtifact",
    "ErasedComparison",
    "Erasure",
    "Evaluation",
    "Freeze",
    "FreshComparison",
    "FrozenComparison",
    "FrozenWithdrawal",
    "GroupMembership",
    "Import",
    "InstanceIdentity",
    "InstructionVersion",
    "Invitation",
    "InvitationUse",
    "LineageEdge",
    "Message",
    "Operator",
    "OperatorAct",
    "Pair",
    "Pairing",
    "ProblemReport",
    "QuarantinedRecord",
    "Queue",
    "Rater",
    "RaterGroup",
    "RaterSession",
    "Stage",
    "StageMetrics",
    "StageProgress",
    "Study",
    "Visit",
    "Withdrawal",
]
