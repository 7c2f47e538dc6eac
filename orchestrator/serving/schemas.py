"""Requests and answers in the shape of OpenAI's chat completions.

A field that is null is a field that is absent, as with OpenAI. What stands in a request and is not read here must be in
`harmless.py`, or the request is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.serving import harmless
from orchestrator.serving.harmless import Harmless

MAX_SEED = 2**63 - 1


def _admit_null(schema: dict[str, Any]) -> None:
    """Tell in the OpenAPI document that what need not be there may be null."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", ()):
            kinds = field.pop("anyOf", None) or [
                {key: field.pop(key) for key in list(field) if key not in ("title", "description", "default")}
            ]
            field["anyOf"] = [kind for kind in kinds if kind != {"type": "null"}] + [{"type": "null"}]


class _Asked(BaseModel):
    """Part of a request: what is read of it, and beside that only what is harmless."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_admit_null)

    beside: ClassVar[Harmless]

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, found: Any) -> Any:
        return harmless.without_nulls(found)

    @model_validator(mode="after")
    def _nothing_passed_over(self) -> Self:
        refused = harmless.refusals(self.model_extra or {}, self.beside)
        if refused:
            raise ValueError("; ".join(refused))
        return self


class TextPart(_Asked):
    """A piece of a message's content."""

    beside = harmless.TEXT_PART

    type: Literal["text"]
    text: str


class ChatMessage(_Asked):
    """One turn of the dialogue. `developer` is OpenAI's newer name of `system`."""

    beside = harmless.MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        # Of a reply that called a tool OpenAI gives null; clients send it back as they got it.
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content is missing; what the {self.role} says can be empty, and must be there")
        return self

    @property
    def spoken_by(self) -> Literal["system", "user", "assistant"]:
        """The role as chat templates know it."""
        return "system" if self.role == "developer" else self.role

    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Asked):
    """Options of a stream."""

    beside = harmless.STREAM_OPTIONS

    include_usage: bool = False


class ChatRequest(_Asked):
    """A chat completion request."""

    beside = harmless.REQUEST

    model: str = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    n: int = Field(1, ge=1, le=16, description="Replies; reply i is drawn with seed + i")
    seed: int | None = Field(
        None, ge=-MAX_SEED - 1, le=MAX_SEED, description="The same replies for the same seed; -1 draws one, as no seed"
    )
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    best_of: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Sample so many for each reply; the preference model chooses one",
    )
    preference_model: str | None = Field(None, max_length=200, description="Digest of the one that chooses")
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _chosen_by_somebody(self) -> Self:
        if (self.best_of or 1) > 1 and self.preference_model is None:
            raise ValueError("best_of needs preference_model, the digest of the preference model that chooses")
        return self


class SnapshotName(BaseModel):
    """Which snapshot an admin call is about."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(max_length=200)
