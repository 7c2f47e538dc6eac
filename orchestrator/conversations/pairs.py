"""Pairs and comparisons: drawn and written before the first token, completed once, compared once.

Every function works in the caller's transaction.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from db import turns
from db.turns import prompt_of
from orchestrator.config import ServingSection
from orchestrator.conversations.contestants import Contestant, Kind
from orchestrator.conversations.dialogues import continue_with, ended, no_policy_live, not_yours
from orchestrator.conversations.pairings import ActivePairing, drawable
from orchestrator.conversations.schemas import AskForPair, Compare, Compared, ComparisonGiven, PairOut, ReplyOut
from orchestrator.errors import ApiError
from orchestrator.people.instruction_versions import current
from orchestrator.people.raters import RaterIdentity
from orchestrator.people.tasks import SIDES, TASKS, Question, Side, TaskName, continues_from
from orchestrator.people.texts import same_text
from orchestrator.store.deployments import LiveDeployment, live_deployment

# Sides and contestants must not be guessable from earlier ones: drawn from the operating system.
_random = random.SystemRandom()

# Seeds stay below 2^53, so that they survive JSON readers that keep numbers as doubles.
_SEED_BITS = 53


class Sampling(TypedDict):
    """How a candidate's text is drawn, as the policy server takes it and as it is stored."""

    max_tokens: int
    temperature: float
    top_p: float
    best_of: NotRequired[int | None]
    preference_model: NotRequired[str | None]


class Answered(TypedDict):
    """The columns of a candidate that say who answers, and how."""

    snapshot_id: int | None
    deployment_id: int | None
    contestant: str | None
    contestant_id: int | None
    sampling: Sampling | None


class NewCandidate(Answered):
    """A candidate that is written before its first token."""

    pair_id: int
    side: Side
    seed: int


@dataclass(frozen=True)
class CandidateRow:
    """A candidate as it is stored: the weights, settings and seed that make its text, and the text once it is there."""

    id: int
    side: Side
    digest: str | None
    """Of the weights; None where they are not ours, or a person writes."""
    sampling: Mapping[str, object]
    seed: int
    text: str | None
    kind: Kind = "policy"
    endpoint: Endpoint | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where an outside model answers."""

    name: str
    """The contestant's."""
    url: str
    model: str
    key_variable: str | None


@dataclass(frozen=True)
class PairRow:
    """A pair as it is stored. For the server alone: it tells which snapshots meet."""

    id: int
    dialogue_id: int
    parent_id: int
    question: Question
    candidates: tuple[CandidateRow, ...]
    comparison: ComparisonGiven | None
    prompt: list[dict[str, str]]
    """The messages that both candidates answer; left empty once they are complete."""

    @property
    def complete(self) -> bool:
        """Whether both replies are there."""
        return all(candidate.text is not None for candidate in self.candidates)

    @property
    def alike(self) -> bool:
        """Whether both replies say the same, so that there is nothing to choose."""
        one, other = (candidate.text for candidate in self.candidates)
        return one is not None and other is not None and same_text(one, other)

    @property
    def held(self) -> bool:
        """Whether neither reply is shown before both are complete: how one comes would tell who answers."""
        return any(candidate.kind != "policy" for candidate in self.candidates)

    def shown(self) -> PairOut:
        """What the rater sees of what is stored."""
        hidden = self.held and not self.complete

        def reply(candidate: CandidateRow) -> ReplyOut:
            text = None if hidden else candidate.text
            return ReplyOut(text=text or "", complete=text is not None)

        replies = {candidate.side: reply(candidate) for candidate in self.candidates}
        return PairOut(
            pair_id=self.id,
            message_id=self.parent_id,
            question=self.question,
            a=replies["a"],
            b=replies["b"],
            comparison=self.comparison,
        )


def ask_for_pair(
    session: Session,
    rater: RaterIdentity,
    message_id: int,
    request: AskForPair,
    resting: Collection[str] = (),
) -> tuple[PairRow, bool]:
    """The pair that this client_key names under the message, drawn and written now if it is new.

    Contestants that are `resting`, by their names, are drawn only where nobody else is. Returns the pair, and whether
    it is new. Nothing is sampled here.
    """
    wanted = {"message_id": message_id, "client_key": request.client_key}
    message = session.execute(turns.ASKED, wanted).one_or_none()
    if message is None or message.rater_id != rater.id:
        raise not_yours("message", message_id)
    if message.pair_id is not None:
        return _same_pair(session, rater, message.pair_id, message.parent_id, message_id), False
    if message.role != "user":
        raise ApiError(409, "not_a_question", f"Message {message_id} is a reply; a pair answers a message you wrote.")
    if message.ended_at is not None:
        raise ended(message.dialogue_id)
    wanted_by = (message.dialogue_id, message.task, message.question, message_id, request.client_key)
    pair = _draw_pair(session, *wanted_by, resting)
    if pair is not None:
        return pair, True
    # The same request came twice at once, and the other one was first; it is committed by now.
    pair_id, parent_id = session.execute(
        select(t.Pair.id, t.Pair.parent_id).where(
            t.Pair.dialogue_id == message.dialogue_id, t.Pair.client_key == request.client_key
        )
    ).one()
    return _same_pair(session, rater, pair_id, parent_id, message_id), False


def read_pair(session: Session, rater: RaterIdentity, pair_id: int) -> PairRow:
    """A pair of the rater's own; 404 for any other."""
    rows = session.execute(turns.PAIR, {"pair_id": pair_id}).all()
    if not rows or rows[0].rater_id != rater.id:
        raise not_yours("pair", pair_id)
    pair: t.Pair = rows[0].Pair
    complete = all(row.Candidate.text is not None for row in rows)
    return PairRow(
        pair.id,
        pair.dialogue_id,
        pair.parent_id,
        pair.question,  # type: ignore[arg-type]
        tuple(_candidate(row.Candidate, row.digest, row.Contestant) for row in rows),
        _given(rows[0].Comparison),
        [] if complete else prompt_of(session, pair.parent_id),
    )


@dataclass(frozen=True)
class Sampled:
    """A reply that is complete."""

    candidate_id: int
    text: str
    reply_tokens: int | None
    truncated: bool
    details: Mapping[str, object] | None = None
    """What the contestant reported: the scores of best-of-k, the model that an endpoint names."""
    writer_id: int | None = None
    """The person who wrote it."""


def complete_candidates(session: Session, replies: list[Sampled]) -> dict[int, str]:
    """Write the texts of complete replies; returns what is stored by candidate id.

    A text is written once: where two processes sampled the same candidate, the first text stays and is returned.
    """
    stored = {}
    for reply in replies:
        values = {
            "candidate_id": reply.candidate_id,
            "reply": reply.text,
            "num_tokens": reply.reply_tokens,
            "cut_off": reply.truncated,
            "told": reply.details,
            "writer_id": reply.writer_id,
        }
        text = session.execute(turns.COMPLETE, values).scalar_one_or_none()
        if text is None:
            text = session.execute(turns.STORED_TEXT, {"candidate_id": reply.candidate_id}).scalar_one()
        stored[reply.candidate_id] = str(text)
    return stored


def compare(session: Session, rater: RaterIdentity, pair_id: int, request: Compare) -> tuple[Compared, bool]:
    """Record the rater's choice, exactly once; returns it and whether it is new.

    The same choice again is the same comparison; another one is refused (409), as is one about an incomplete pair.
    """
    side = continues_from(request.side)
    pair = session.execute(turns.CHOSEN, {"pair_id": pair_id, "side": side}).one_or_none()
    if pair is None or pair.rater_id != rater.id:
        raise not_yours("pair", pair_id)
    if pair.num_texts < 2:
        raise ApiError(409, "pair_incomplete", f"Pair {pair_id} is not complete; read both replies, then choose.")
    if pair.edited:
        raise ApiError(409, "already_edited", f"A reply of pair {pair_id} was edited; that stands.")
    answer = {
        "pair_id": pair_id,
        "rater_id": rater.id,
        "side": request.side,
        "reason": request.reason,
        "strength": request.strength,
        "duration_ms": request.duration_ms,
    }
    new = None
    if pair.ended_at is None:
        new = session.execute(turns.ADD_COMPARISON, answer).scalar_one_or_none()
    comparison_id = new or _same_comparison(session, rater, pair_id, pair.dialogue_id, request)
    message_id = continue_with(session, pair.dialogue_id, pair.parent_id, pair.chosen_id, pair.text)
    return Compared(comparison_id=comparison_id, continue_from=message_id), new is not None


def _draw_pair(
    session: Session,
    dialogue_id: int,
    task: TaskName,
    question: Question,
    message_id: int,
    client_key: str,
    resting: Collection[str],
) -> PairRow | None:
    """Draw contestants and sides and write the pair; None where this client_key has a pair by now."""
    live, pairings = drawable(session, task)
    if live is None:
        raise no_policy_live()
    pairing: ActivePairing | None = None
    pairings = [one for one in pairings if not {one.a.name, one.b.name} & {*resting}] or pairings
    if pairings:
        pairing = _random.choices(pairings, [pairing.weight for pairing in pairings])[0]
    drawn: list[Contestant | None] = [None, None] if pairing is None else [pairing.a, pairing.b]
    _random.shuffle(drawn)
    values = {
        "dialogue_id": dialogue_id,
        "parent_id": message_id,
        "question": question,
        "purpose": TASKS[task].purpose,
        "instruction_version": current(session, question).version,
        "pairing_id": pairing.id if pairing else None,
        "client_key": client_key,
    }
    pair_id = session.execute(turns.ADD_PAIR, values).scalar_one_or_none()
    if pair_id is None:
        return None
    # Neighbouring seeds are as independent as any, and let one request ask for both replies of one snapshot.
    seed = secrets.randbits(_SEED_BITS) & ~1
    written: list[NewCandidate] = [
        {"pair_id": pair_id, "side": side, "seed": seed + offset, **_answered_by(contestant, live)}
        for offset, (side, contestant) in enumerate(zip(SIDES, drawn, strict=True))
    ]
    ids = {row.side: row.id for row in session.execute(turns.ADD_CANDIDATES, written)}
    candidates = tuple(
        _fresh(ids[side], side, one, contestant, live)
        for side, one, contestant in zip(SIDES, written, drawn, strict=True)
    )
    return PairRow(pair_id, dialogue_id, message_id, question, candidates, None, prompt_of(session, message_id))


def _answered_by(contestant: Contestant | None, live: LiveDeployment) -> Answered:
    """The columns of a candidate that say who answers, and how; the live policy where no pairing was drawn."""
    sampling = _sampling(live)
    if contestant is None or contestant.kind == "policy":
        snapshot_id = live.snapshot_id if contestant is None else contestant.snapshot_id
        return {
            "snapshot_id": snapshot_id,
            "deployment_id": live.id if snapshot_id == live.snapshot_id else None,
            "contestant": None,
            "contestant_id": None,
            "sampling": sampling,
        }
    if contestant.kind == "best_of":
        sampling = {**sampling, "best_of": contestant.k, "preference_model": contestant.preference_model}
    return {
        "snapshot_id": contestant.snapshot_id,
        "deployment_id": None,
        "contestant": contestant.name,
        "contestant_id": contestant.id,
        "sampling": None if contestant.kind == "writer" else sampling,
    }


def _fresh(
    id_: int, side: Side, row: NewCandidate, contestant: Contestant | None, live: LiveDeployment
) -> CandidateRow:
    """A candidate that was written a moment ago."""
    digest = live.digest if contestant is None else contestant.digest
    kind: Kind = "policy" if contestant is None else contestant.kind
    return CandidateRow(id_, side, digest, row["sampling"] or {}, row["seed"], None, kind, _endpoint(contestant))


def sampling_now(session: Session) -> Sampling:
    """Sampling settings with which the next pair is asked for; the defaults where nothing is live."""
    return _sampling(live_deployment(session))


def _sampling(live: LiveDeployment | None) -> Sampling:
    """Sampling settings of the live cycle's [serving] section, equal for every contestant."""
    serving = ServingSection.model_validate({} if live is None else live.serving)
    return {
        "max_tokens": serving.max_reply_tokens,
        "temperature": serving.temperature,
        "top_p": serving.top_p,
    }


def _same_pair(session: Session, rater: RaterIdentity, pair_id: int, parent_id: int, message_id: int) -> PairRow:
    if parent_id != message_id:
        raise ApiError(409, "client_key_taken", f"This client_key names pair {pair_id} under another message.")
    return read_pair(session, rater, pair_id)


def _same_comparison(session: Session, rater: RaterIdentity, pair_id: int, dialogue_id: int, request: Compare) -> int:
    earlier = session.execute(
        select(t.Comparison.id, t.Comparison.side, t.Comparison.reason, t.Comparison.strength).where(
            t.Comparison.pair_id == pair_id, t.Comparison.rater_id == rater.id
        )
    ).one_or_none()
    if earlier is None:
        raise ended(dialogue_id)
    if (earlier.side, earlier.reason, earlier.strength) != (request.side, request.reason, request.strength):
        raise ApiError(
            409,
            "already_compared",
            f"Pair {pair_id} was compared already, with another answer (side {earlier.side}); the first one stands.",
        )
    comparison_id: int = earlier.id
    return comparison_id


def _candidate(candidate: t.Candidate, digest: str | None, contestant: t.Contestant | None) -> CandidateRow:
    return CandidateRow(
        candidate.id,
        candidate.side,  # type: ignore[arg-type]
        digest,
        candidate.sampling or {},
        candidate.seed or 0,
        candidate.text,
        "policy" if contestant is None else contestant.kind,  # type: ignore[arg-type]
        _endpoint(contestant),
    )


def _endpoint(contestant: Contestant | t.Contestant | None) -> Endpoint | None:
    if contestant is None or contestant.kind != "endpoint":
        return None
    return Endpoint(contestant.name, contestant.url or "", contestant.model or "", contestant.key_variable)


def _given(comparison: t.Comparison | None) -> ComparisonGiven | None:
    if comparison is None:
        return None
    return ComparisonGiven(
        comparison_id=comparison.id,
        side=comparison.side,  # type: ignore[arg-type]
        reason=comparison.reason,
        strength=comparison.strength,
    )
