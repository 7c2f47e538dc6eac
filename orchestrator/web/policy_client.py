"""How the feedback app gets replies of the policies: chat completions of a named snapshot.

Outside models are asked in `outside_models.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import httpx

from orchestrator.http_shared.model_answers import Refusal, read_refusal, refusal_in
from orchestrator.http_shared.proxies import proxy_for, tls
from orchestrator.http_shared.server_sent_events import data_of_events

# No token for so long means that the connection is dead; a full queue of long replies stays below it.
READ_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ReplyRequest:
    """`n` replies of one snapshot to the same messages; reply `i` is drawn with `seed + i`."""

    digest: str
    messages: list[dict[str, str]]
    sampling: Mapping[str, object]
    seed: int
    n: int = 1

    def body(self, *, stream: bool) -> Mapping[str, object]:
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
    last: bool = False
    """Whether the reply is complete with it."""
    reply_tokens: int | None = None
    """None where an outside model does not say."""
    truncated: bool = False
    details: Mapping[str, object] | None = None
    """What else was told about the reply: the scores of best-of-k, the name that an outside model gives itself."""


class PolicyUnavailable(Exception):
    """The policy server does not answer, or not now; asking again may help."""


class NoReply(Exception):
    """A reply can't be had, and asking again in a moment would bring the same."""


class PolicyRefused(NoReply):
    """The policy server will never answer this request; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PolicyReplies:
    """Asks the policy server for replies."""

    def __init__(self, url: str, key: str | None = None, max_connections: int = 512) -> None:
        self.url = url
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=5.0)
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=timeout,
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            headers=bearer(key),
            proxy=proxy_for(url),
            verify=tls(),
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
            raise _refusal(read_refusal(response.status_code, response.text))
        answer = response.json()
        _check_snapshot(answer, request)
        return [
            Delta(
                choice["index"],
                choice["message"]["content"],
                last=True,
                reply_tokens=choice["reply_tokens"],
                truncated=choice["finish_reason"] == "length",
                details={"best_of": choice["best_of"]} if "best_of" in choice else None,
            )
            for choice in answer["choices"]
        ]

    async def _streamed(self, request: ReplyRequest) -> AsyncIterator[Delta]:
        missing = set(range(request.n))
        async with self._client.stream("POST", "/v1/chat/completions", json=request.body(stream=True)) as response:
            if response.is_error:
                text = (await response.aread()).decode(errors="replace")
                raise _refusal(read_refusal(response.status_code, text))
            async for data in data_of_events(response):
                if data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if (said_no := refusal_in(chunk)) is not None:
                    raise _refusal(said_no)
                _check_snapshot(chunk, request)
                for choice in chunk["choices"]:
                    finish = choice.get("finish_reason")
                    text = choice["delta"].get("content") or ""
                    if finish is None:
                        yield Delta(choice["index"], text)
                    else:
                        missing.discard(choice["index"])
                        yield Delta(
                            choice["index"],
                            text,
                            last=True,
                            reply_tokens=choice["reply_tokens"],
                            truncated=finish == "length",
                        )
        if missing:
            raise PolicyUnavailable(f"{self.url} ended the stream before the replies were complete")


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries a key, where there is one."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _check_snapshot(answer: Mapping[str, object], request: ReplyRequest) -> None:
    """The reply must come from the weights that were written down for it before it was asked for."""
    if answer.get("system_fingerprint") != request.digest:
        raise PolicyUnavailable(
            f"asked snapshot {request.digest}, but {answer.get('system_fingerprint')} answered; the reply is dropped"
        )


# Of these the operator can mend the first two, a snapshot that is not there now may be restored, the rest ask to come
# again.
_MAY_CHANGE = (401, 403, 404, 407, 408, 425, 429)


def _refusal(refusal: Refusal) -> Exception:
    # Our own detector says 403 as well, of the request itself.
    may_change = refusal.status in _MAY_CHANGE and refusal.code != "out_of_distribution"
    if refusal.status >= 500 or may_change:
        return PolicyUnavailable(f"{refusal.status} {refusal.code}: {refusal.message}")
    return PolicyRefused(refusal.code, refusal.message)
