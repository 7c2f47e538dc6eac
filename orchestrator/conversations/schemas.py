"""Bodies of requests and answers of the feedback app. Nothing here tells which snapshot wrote a reply."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from orchestrator.people.tasks import Choice, Question, TaskName

MAX_MESSAGE_CHARS = 20_000


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("contains a NUL character, which can't be stored; remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair; send valid Unicode") from None
    return text


def _written(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write something")
    return _storable(text)


Written = Annotated[str, Field(max_length=MAX_MESSAGE_CHARS), AfterValidator(_written)]
ClientKey = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
"""Chosen by the client, once per intention: sent again, it names the same message or pair."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BeginDialogue(_Request):
    """Begin a dialogue."""

    task: TaskName
    question: Literal["helpful", "harmless"] | None = Field(
        None, description="Only for model_comparison: what to ask; helpful where not given"
    )
    client_key: ClientKey | None = None


class InstructionsOut(BaseModel):
    """What the rater is told."""

    version: str
    text: str


class DialogueBegun(BaseModel):
    """A dialogue that awaits its first message."""

    dialogue_id: int
    task: TaskName
    question: Question
    instructions: InstructionsOut


class AddMessage(_Request):
    """What the rater wrote."""

    content: Written
    parent_id: int | None = Field(None, description="The reply that this answers; null begins the dialogue")
    client_key: ClientKey


class MessageAdded(BaseModel):
    """The message's id."""

    message_id: int


class AskForPair(_Request):
    """Ask for two replies to a message."""

    client_key: ClientKey
    wait: bool = Field(True, description="Answer when both replies are complete, else at once")


class ReplyOut(BaseModel):
    """One side: the text so far, and whether that is all."""

    text: str
    complete: bool


class ComparisonGiven(BaseModel):
    """The answer a pair got."""

    comparison_id: int
    side: Choice
    reason: str | None
    strength: int | None


class PairOut(BaseModel):
    """Two replies side by side."""

    pair_id: int
    message_id: int
    question: Question
    a: ReplyOut
    b: ReplyOut
    comparison: ComparisonGiven | None = None


class Compare(_Request):
    """The rater's choice."""

    side: Choice
    reason: Literal["cant_tell", "tie"] | None = None
    strength: int | None = Field(None, ge=1, le=4, description="1 slight to 4 strong")
    duration_ms: int | None = Field(None, ge=0, le=7 * 24 * 3600 * 1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.side == "none") != (self.reason is not None):
            raise ValueError("side none needs a reason, cant_tell or tie; sides a and b have none")
        if self.side == "none" and self.strength is not None:
            raise ValueError("side none has no strength")
        return self


class Compared(BaseModel):
    """The comparison, and the message from which the dialogue goes on."""

    comparison_id: int
    continue_from: int


class DialogueEnded(BaseModel):
    """A dialogue that takes no more messages."""

    dialogue_id: int
    ended_at: datetime
