"""How the feedback app gets replies: chat completions of a named snapshot, over kept connections.

It speaks the OpenAI shape, so that an engine of another maker can stand behind the same address.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

# No token for so long means that the connection is dead; a full queue of long replies stays below it.
_READ_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ReplyRequest:
    """`n` replies of one snapshot to the same messages; reply `i` is drawn with `seed + i`."""

    digest: str
    messages: list[dict[str, str]]
    sampling: dict[str, Any]
    seed: int
    n: int = 1

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The JSON body of the request."""
        return {
            "model": self.digest,
            "messages": self.messages,
            "n": self.n,
            "seed": self.seed,
            "stream": stream,
            **self.sampling,
        }


@dataclass(frozen=True)
class Delta:
    """More text of reply `index`; the last one says how many tokens it has and whether it was cut off."""

    index: int
    text: str
    reply_tokens: int | None = None
    truncated: bool | None = None

    @property
    def last(self) -> bool:
        """Whether the reply is complete with it."""
        return self.reply_tokens is not None


class PolicyUnavailable(Exception):
    """The policy server does not answer, or not now; asking again may help."""


class PolicyRefused(Exception):
    """The policy server will never answer this request; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PolicyReplies:
    """Asks one policy server for replies."""

    def __init__(self, url: str, max_connections: int = 512) -> None:
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=5.0),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the kept connections."""
        await self._client.aclose()

    async def replies(self, request: ReplyRequest, *, stream: bool) -> AsyncIterator[Delta]:
        """The replies as they grow, or each in one piece where `stream` is off.

        Raises:
            PolicyUnavailable: no answer, a broken one, or 5xx.
            PolicyRefused: the request itself is impossible (4xx).
        """
        try:
            if stream:
                async for delta in self._streamed(request):
                    yield delta
            else:
                for delta in await self._whole(request):
                    yield delta
        except httpx.HTTPError as error:
            raise PolicyUnavailable(f"{self.url}: {type(error).__name__}: {error}") from error
        except (KeyError, ValueError, TypeError) as error:
            raise PolicyUnavailable(f"{self.url} answered something unreadable: {error!r}") from error

    async def _whole(self, request: ReplyRequest) -> list[Delta]:
        response = await self._client.post("/v1/chat/completions", json=request.body(stream=False))
        if response.is_error:
            raise _refusal(response.status_code, response.text)
        answer = response.json()
        _check_snapshot(answer, request)
        return [
            Delta(
                choice["index"],
                choice["message"]["content"],
                choice["reply_tokens"],
                choice["finish_reason"] == "length",
            )
            for choice in answer["choices"]
        ]

    async def _streamed(self, request: ReplyRequest) -> AsyncIterator[Delta]:
        missing = set(range(request.n))
        async with self._client.stream("POST", "/v1/chat/completions", json=request.body(stream=True)) as response:
            if response.is_error:
                raise _refusal(response.status_code, (await response.aread()).decode(errors="replace"))
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise PolicyUnavailable(f"{self.url}: {chunk['error'].get('message')}")
                _check_snapshot(chunk, request)
                for choice in chunk["choices"]:
                    finish = choice.get("finish_reason")
                    text = choice["delta"].get("content") or ""
                    if finish is None:
                        yield Delta(choice["index"], text)
                    else:
                        missing.discard(choice["index"])
                        yield Delta(choice["index"], text, choice["reply_tokens"], finish == "length")
        if missing:
            raise PolicyUnavailable(f"{self.url} ended the stream before the replies were complete")


def _check_snapshot(answer: dict[str, Any], request: ReplyRequest) -> None:
    """The reply must come from the weights that were written down for it before it was asked for."""
    if answer.get("system_fingerprint") != request.digest:
        raise PolicyUnavailable(
            f"asked snapshot {request.digest}, but {answer.get('system_fingerprint')} answered; the reply is dropped"
        )


def _refusal(status: int, text: str) -> Exception:
    try:
        error = json.loads(text)["error"]
        code, message = str(error.get("code")), str(error.get("message"))
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message = "unreadable", text[:200]
    # 404: a snapshot that is not there now may be restored; 408 and 429 ask to come again.
    if status >= 500 or status in (404, 408, 429):
        return PolicyUnavailable(f"{status} {code}: {message}")
    return PolicyRefused(code, message)
