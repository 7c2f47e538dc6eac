"""What the database refuses, by name: each constraint a person or a program can run into is a type of its own.

RefusedByDatabase          base: a constraint or a trigger refused a row
├── DuplicateComparison    this rater has answered this pair already
├── OpenCycleExists        another cycle is open
├── LiveDeploymentExists   another snapshot is live
├── DuplicateMessage       this client key has been used in this dialogue: a retry or a double click
├── DuplicatePair          the same, for a pair
├── DuplicateDialogue      the same, for a dialogue
├── DuplicateImport        an imported record that is there already
├── DuplicateRater         the handle is taken
├── AlreadyDecided         somebody else has decided about this approval
├── AlreadyFrozen          the cycle has frozen its comparisons, or a comparison belongs to a freeze
├── AppendOnly             an attempt to change or delete what may only be added
├── IncompletePair         a choice between replies that are not both complete
├── UnknownReference       a row refers to one that is not there
└── InvalidRow             a value or combination that the table does not allow
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from sqlalchemy.exc import DBAPIError

# SQLSTATE values: Postgres' own of class 23, and two that our triggers raise.
FOREIGN_KEY_VIOLATION = "23503"
UNIQUE_VIOLATION = "23505"
NOT_NULL_VIOLATION = "23502"
CHECK_VIOLATION = "23514"
EXCLUSION_VIOLATION = "23P01"
APPEND_ONLY = "RL001"
INCOMPLETE_PAIR = "RL002"


class RefusedByDatabase(Exception):
    """A constraint or a trigger refused a row; `constraint` is its name, where it has one."""

    def __init__(self, message: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class DuplicateComparison(RefusedByDatabase):
    """This rater has answered this pair already."""


class OpenCycleExists(RefusedByDatabase):
    """Another cycle is open; there is at most one."""


class LiveDeploymentExists(RefusedByDatabase):
    """Another snapshot is live; its deployment ends before the next begins."""


class DuplicateMessage(RefusedByDatabase):
    """This client key has been used in this dialogue, or the candidate became a message already."""


class DuplicatePair(RefusedByDatabase):
    """This client key has been used for a pair of this dialogue."""


class DuplicateDialogue(RefusedByDatabase):
    """This rater has begun a dialogue with this client key."""


class DuplicateImport(RefusedByDatabase):
    """An imported record that is there already."""


class DuplicateRater(RefusedByDatabase):
    """The handle, or the token, is taken."""


class AlreadyDecided(RefusedByDatabase):
    """Somebody else has decided about this approval already."""


class AlreadyFrozen(RefusedByDatabase):
    """The cycle has frozen its comparisons already, or the comparison belongs to a freeze already."""


class AppendOnly(RefusedByDatabase):
    """An attempt to change or delete what may only be added."""


class IncompletePair(RefusedByDatabase):
    """A choice between replies that are not both complete."""


class UnknownReference(RefusedByDatabase):
    """A row refers to one that is not there."""


class InvalidRow(RefusedByDatabase):
    """A value, or a combination of values, that the table does not allow."""


BY_CONSTRAINT: dict[str, type[RefusedByDatabase]] = {
    "uq_comparisons_pair_id_rater_id": DuplicateComparison,
    "uq_cycles_open": OpenCycleExists,
    "uq_deployments_live": LiveDeploymentExists,
    "uq_messages_dialogue_id_client_key": DuplicateMessage,
    "uq_messages_candidate_id": DuplicateMessage,
    "uq_pairs_dialogue_id_client_key": DuplicatePair,
    "uq_candidates_pair_id_side": DuplicatePair,
    "uq_dialogues_rater_id_client_key": DuplicateDialogue,
    "uq_dialogues_identity_digest": DuplicateImport,
    "uq_pairs_identity_digest": DuplicateImport,
    "uq_quarantined_records_record": DuplicateImport,
    "uq_raters_handle": DuplicateRater,
    "uq_raters_token_digest": DuplicateRater,
    "uq_decisions_approval_id": AlreadyDecided,
    "uq_freezes_cycle_id": AlreadyFrozen,
    "ex_frozen_comparisons_run": AlreadyFrozen,
}

BY_SQLSTATE: dict[str, type[RefusedByDatabase]] = {
    APPEND_ONLY: AppendOnly,
    INCOMPLETE_PAIR: IncompletePair,
    FOREIGN_KEY_VIOLATION: UnknownReference,
    CHECK_VIOLATION: InvalidRow,
    NOT_NULL_VIOLATION: InvalidRow,
    UNIQUE_VIOLATION: InvalidRow,
    EXCLUSION_VIOLATION: InvalidRow,
}


def typed(error: DBAPIError) -> RefusedByDatabase | None:
    """The error of our own that stands for what Postgres refused, or None where it is something else."""
    original = error.orig
    state = getattr(original, "pgcode", None)
    diagnosis = getattr(original, "diag", None)
    constraint = getattr(diagnosis, "constraint_name", None)
    kind = BY_CONSTRAINT.get(constraint or "") or BY_SQLSTATE.get(state or "")
    if kind is None:
        return None
    said = getattr(diagnosis, "message_primary", None) or str(original)
    detail = getattr(diagnosis, "message_detail", None)
    first_line = (kind.__doc__ or "").strip().splitlines()[0]
    parts = [first_line if kind not in (AppendOnly, IncompletePair) else "", said + ".", detail or ""]
    return kind(" ".join(part for part in parts if part).replace("..", "."), constraint)


def raise_typed(error: DBAPIError) -> NoReturn:
    """Raise the typed error that stands for this one, or this one itself."""
    found = typed(error)
    if found is None:
        raise error
    raise found from error


@contextmanager
def translate() -> Iterator[None]:
    """Turn what Postgres refuses inside the block into the typed errors of this module."""
    try:
        yield
    except DBAPIError as error:
        raise_typed(error)
