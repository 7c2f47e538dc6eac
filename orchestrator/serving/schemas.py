"""Requests and answers in the shape of OpenAI's chat completions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What would change the reply and is not supported: refused rather than passed over in silence.
_UNSUPPORTED = (
    "stop",
    "tools",
    "functions",
    "response_format",
    "logit_bias",
    "logprobs",
    "presence_penalty",
    "frequency_penalty",
)


class TextPart(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of the dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A chat completion request. Fields that don't change the reply (`user`, for one) may be there."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    n: int = Field(1, ge=1, le=16, description="Replies; reply i is drawn with seed + i")
    seed: int | None = Field(None, ge=0, lt=2**63)
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
    def _supported(self) -> Self:
        if (self.best_of or 1) > 1 and self.preference_model is None:
            raise ValueError("best_of needs preference_model, the digest of the preference model that chooses")
        extra = self.model_extra or {}
        unsupported = [name for name in _UNSUPPORTED if extra.get(name)]
        if unsupported:
            raise ValueError(f"{', '.join(unsupported)} can't be used with this server; leave it out")
        return self


class SnapshotName(BaseModel):
    """Which snapshot an admin call is about."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(max_length=200)
