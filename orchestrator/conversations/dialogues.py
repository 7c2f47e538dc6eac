"""What raters write: dialogues and messages. Every function works in the caller's transaction."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db import tables as t
from db import turns
from db.split import split_key
from orchestrator.conversations.pairings import drawable
from orchestrator.conversations.schemas import AddMessage, BeginDialogue
from orchestrator.errors import ApiError
from orchestrator.people.queues import offers
from orchestrator.people.raters import RaterIdentity, rater_by_token
from orchestrator.people.tasks import TASKS, Question
from orchestrator.people.texts import same_text

SOURCE = "feedback"


def require_rater(session: Session, token: str) -> RaterIdentity:
    """Whose token it is; 401 where it is nobody's, 403 where the rater is banned."""
    rater = rater_by_token(session, token)
    if rater is None:
        raise ApiError(401, "unknown_token", "This token belongs to no rater. Ask the operator for a new one.")
    if rater.banned:
        raise ApiError(403, "rater_banned", "This rater takes no part any more. Ask the operator about it.")
    return rater


def begin_dialogue(session: Session, rater: RaterIdentity, request: BeginDialogue) -> tuple[int, Question, bool]:
    """Begin a dialogue; returns its id, what its pairs will ask, and whether it is new.

    The same client_key again is the same dialogue; for another task it is refused (409).
    """
    task = TASKS[request.task]
    question: Question = request.question or task.questions[0]
    if question not in task.questions:
        raise ApiError(
            422,
            "wrong_question",
            f"Task {request.task} asks '{task.questions[0]}'; 'question' can be chosen for model_comparison only.",
        )
    # Replies of the initial policy are the base tranche, the best of k of them the rejection-sampled one, those of
    # trained snapshots the online one.
    live, pairings = drawable(session, request.task)
    if live is None:
        raise no_policy_live()
    tranche = "base" if live.kind == "initial_policy" else "online"
    if tranche == "base" and any("best_of" in (pairing.a.kind, pairing.b.kind) for pairing in pairings):
        tranche = "rs"
    values = {
        "source": SOURCE,
        "tranche": tranche,
        "task": request.task,
        "question": question,
        "rater_id": rater.id,
        "client_key": request.client_key,
    }
    begun = session.execute(turns.ADD_DIALOGUE, values).scalar_one_or_none()
    if begun is not None:
        # Asked of a new dialogue only: one that was begun before its queue closed is answered as before.
        if (request.task, question) not in offers(session, rater):
            raise ApiError(
                403,
                "not_offered",
                f"Task {request.task} (question: {question}) is not offered to you at the moment. "
                "Choose one from your home page.",
            )
        return int(begun), question, True
    earlier = session.execute(
        select(t.Dialogue.id, t.Dialogue.task, t.Dialogue.question).where(
            t.Dialogue.rater_id == rater.id, t.Dialogue.client_key == request.client_key
        )
    ).one()
    if (earlier.task, earlier.question) != (request.task, question):
        raise ApiError(409, "client_key_taken", f"client_key {request.client_key!r} names another dialogue already.")
    return earlier.id, question, False


def add_message(session: Session, rater: RaterIdentity, dialogue_id: int, request: AddMessage) -> tuple[int, bool]:
    """Add what the rater wrote; returns the message's id and whether it is new.

    The same client_key again is the same message; with other content it is refused (409).
    """
    # The lock makes two tabs take turns, so that a dialogue has one opening message.
    dialogue = session.execute(turns.LOCK_DIALOGUE, {"dialogue_id": dialogue_id}).one_or_none()
    if dialogue is None or dialogue.rater_id != rater.id:
        raise not_yours("dialogue", dialogue_id)
    if dialogue.ended_at is not None:
        problem: ApiError | None = ended(dialogue_id)
    else:
        problem = _parent_problem(session, dialogue_id, dialogue.split_key is not None, request.parent_id)
    if problem is None:
        values = {
            "dialogue_id": dialogue_id,
            "parent_id": request.parent_id,
            "role": "user",
            "content": request.content,
            "client_key": request.client_key,
        }
        added = session.execute(turns.ADD_MESSAGE, values).scalar_one_or_none()
        if added is not None:
            if request.parent_id is None:
                session.execute(turns.SET_SPLIT_KEY, {"dialogue_id": dialogue_id, "key": split_key(request.content)})
            return int(added), True
    return _earlier_message(session, dialogue_id, request, problem), False


def continue_with(session: Session, dialogue_id: int, parent_id: int, candidate_id: int, text: str) -> int:
    """The message that a candidate becomes where the dialogue goes on from it; made once."""
    values = {
        "dialogue_id": dialogue_id,
        "parent_id": parent_id,
        "role": "assistant",
        "content": text,
        "candidate_id": candidate_id,
    }
    added: int | None = session.execute(turns.CONTINUE_WITH, values).scalar_one_or_none()
    if added is not None:
        return added
    return session.execute(select(t.Message.id).where(t.Message.candidate_id == candidate_id)).scalar_one()


def end_dialogue(session: Session, rater: RaterIdentity, dialogue_id: int) -> datetime:
    """End a dialogue, once; returns when it ended."""
    dialogue = session.execute(turns.LOCK_DIALOGUE, {"dialogue_id": dialogue_id}).one_or_none()
    if dialogue is None or dialogue.rater_id != rater.id:
        raise not_yours("dialogue", dialogue_id)
    if dialogue.ended_at is not None:
        earlier: datetime = dialogue.ended_at
        return earlier
    now = datetime.now(UTC)
    session.execute(update(t.Dialogue).where(t.Dialogue.id == dialogue_id).values(ended_at=now))
    return now


def no_policy_live() -> ApiError:
    """The answer before the first deployment."""
    return ApiError(503, "no_policy_live", "No policy is live yet. Try again in a moment.", retry_after_s=2)


def owner_of(session: Session, dialogue_id: int) -> int | None:
    """The rater whose dialogue it is; None where there is no such dialogue, or it is nobody's here."""
    return session.scalar(select(t.Dialogue.rater_id).where(t.Dialogue.id == dialogue_id))


def not_yours(what: str, id_: int) -> ApiError:
    """The answer for what is not there and for what is another rater's: nobody learns which."""
    return ApiError(404, "not_found", f"You have no {what} {id_}.")


def ended(dialogue_id: int) -> ApiError:
    """The answer to anything new in a dialogue that has ended."""
    return ApiError(409, "dialogue_ended", f"Dialogue {dialogue_id} has ended. Begin a new one.")


def _earlier_message(session: Session, dialogue_id: int, request: AddMessage, problem: ApiError | None) -> int:
    """The message that has this client_key already; raises `problem` where there is none."""
    earlier = session.execute(
        select(t.Message.id, t.Message.content, t.Message.parent_id).where(
            t.Message.dialogue_id == dialogue_id, t.Message.client_key == request.client_key
        )
    ).one_or_none()
    if earlier is None:
        raise problem or AssertionError("a message was refused for a client_key that no message has")
    if earlier.parent_id != request.parent_id or not same_text(earlier.content, request.content):
        raise ApiError(409, "client_key_taken", f"client_key {request.client_key!r} names another message already.")
    message_id: int = earlier.id
    return message_id


def _parent_problem(session: Session, dialogue_id: int, begun: bool, parent_id: int | None) -> ApiError | None:
    """Why a message can't stand under this parent; None where it can."""
    if parent_id is None:
        if not begun:
            return None
        return ApiError(
            409,
            "dialogue_begun",
            f"Dialogue {dialogue_id} has an opening message already; give the parent_id of the reply answered.",
        )
    role = session.execute(turns.ROLE, {"message_id": parent_id, "dialogue_id": dialogue_id}).scalar_one_or_none()
    if role == "assistant":
        return None
    found = "is not in this dialogue" if role is None else f"is a {role} message"
    return ApiError(
        409, "wrong_parent", f"Message {parent_id} {found}; parent_id must be a reply of dialogue {dialogue_id}."
    )
