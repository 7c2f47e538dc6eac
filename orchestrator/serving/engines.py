"""Engines of others behind the policy server: vLLM and the like, one OpenAI-compatible address each.

For models that are too big for the built-in decoder. An engine serves what the operator started it with; the policy
server finds a snapshot at the engine that has a model of its digest's name, and keeps names, keys, swaps, best-of-k
and digests as they are with its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from models.chat.format import ChatFormat, Message
from models.sampling.engine import SamplingParams
from orchestrator.errors import ApiError, ArtifactError
from orchestrator.http_shared.model_answers import GrowingText, Refusal, read_refusal, refusal_in, text_of
from orchestrator.http_shared.server_sent_events import data_of_events

logger = logging.getLogger(__name__)

_READ_TIMEOUT_S = 300.0
_DONE = "[DONE]"


class OutsideReply:
    """One reply while an outside engine decodes it; the counterpart of `decoding.Reply`."""

    def __init__(self, params: SamplingParams, changed: asyncio.Event, *, every_token: bool) -> None:
        self.params = params
        self.changed = changed
        self.every_token = every_token
        self.growing = GrowingText()
        self.counted: int | None = None
        self.finished: str | None = None
        self.failure: str | None = None
        self.refusal: ApiError | None = None
        """Set beside `failure` where the engine will never answer this request, or not now, and says why."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.failure is not None

    @property
    def content(self) -> str:
        """The reply so far."""
        return self.growing.text

    def text(self, chat: ChatFormat) -> str:
        """The reply so far."""
        return self.content

    def num_tokens(self, chat: ChatFormat) -> int:
        """Its tokens as the engine counts them; from the text, by our tokenizer, where the engine says nothing."""
        if self.counted is not None:
            return self.counted
        stopped = len(chat.encode_reply(self.content))
        return stopped if self.finished == "stop" else stopped - 1


class OutsideEngine:
    """A snapshot at an outside engine."""

    def __init__(self, client: httpx.AsyncClient, url: str, model: str, max_context: int | None) -> None:
        self._client = client
        self.url = url
        self._model = model
        self.max_context = max_context

    async def run(self, messages: list[Message], reply: OutsideReply) -> None:
        """Let the reply grow until it ends; what goes wrong is its failure."""
        params = reply.params
        body = {
            "model": self._model, "messages": messages, "max_tokens": params.max_tokens,
            "temperature": params.temperature, "top_p": params.top_p, "seed": params.seed, "n": 1, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        try:
            await self._stream(body, reply)
        except _Refused as error:
            reply.refusal = error.answer
            reply.failure = error.answer.message
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            reply.failure = f"the engine at {self.url} failed ({type(error).__name__}: {error})"
        if reply.failure is not None:
            logger.warning("%s", reply.failure)
        reply.changed.set()

    async def _stream(self, body: Mapping[str, object], reply: OutsideReply) -> None:
        async with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            if response.is_error:
                text = (await response.aread()).decode(errors="replace")
                raise _Refused(self.url, read_refusal(response.status_code, text), response.headers.get("Retry-After"))
            if "json" in response.headers.get("Content-Type", ""):
                # It does not stream, or it says no under a status that says yes.
                finished = self._take(json.loads(await response.aread()), reply)
            else:
                finished = await self._take_events(response, reply)
        reply.growing.end()
        if finished is None or finished in ("abort", "error"):
            raise ValueError(f"it ended before the reply was complete, finish_reason {finished!r}")
        reply.finished = finished

    async def _take_events(self, response: httpx.Response, reply: OutsideReply) -> str | None:
        finished = None
        async for data in data_of_events(response):
            if data == _DONE:
                # Some say that they are done, and never how.
                finished = finished or "stop"
                continue
            finished = self._take(json.loads(data), reply) or finished
            if reply.every_token:
                reply.changed.set()
        return finished

    def _take(self, found: Any, reply: OutsideReply) -> str | None:
        """Let the reply grow by what an answer or an event holds; gives how the reply ended, where it did."""
        refusal = refusal_in(found)
        if refusal is not None:
            raise _Refused(self.url, refusal, None)
        finished = None
        for choice in found.get("choices") or []:
            said = choice.get("delta") or choice.get("message") or {}
            reply.growing.add(text_of(said.get("content")))
            finished = choice.get("finish_reason") or finished
        # The last event, after the reply's end.
        reply.counted = (found.get("usage") or {}).get("completion_tokens", reply.counted)
        return finished


class _Refused(Exception):
    """The engine says no. A 4xx stays one, with its words: asking again would bring the same."""

    def __init__(self, url: str, refusal: Refusal, retry_after: str | None) -> None:
        message = f"The engine at {url} refused: {refusal.status} {refusal.message}"
        super().__init__(message)
        if 400 <= refusal.status < 500:
            waits_s = int(retry_after) if retry_after and retry_after.isdecimal() else None
            self.answer = ApiError(refusal.status, refusal.code, message, retry_after_s=waits_s)
        else:
            self.answer = ApiError(503, "decoding_failed", message, retry_after_s=1)


class Engines:
    """The outside engines of a policy server; none of them is the usual case."""

    def __init__(self, urls: tuple[str, ...], key: str | None) -> None:
        self.urls = tuple(url.rstrip("/") for url in urls)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=5.0)
        self._client = httpx.AsyncClient(timeout=timeout, headers=headers, trust_env=False) if urls else None

    async def find(self, digest: str, folder: Path) -> OutsideEngine:
        """The engine that serves the snapshot.

        Raises:
            ArtifactError: none does; it says what is served, and how an engine is started with the snapshot.
        """
        assert self._client is not None
        met = []
        for url in self.urls:
            try:
                answer = await self._client.get(f"{url}/models", timeout=10.0)
                answer.raise_for_status()
                models = {str(model["id"]): model for model in answer.json()["data"]}
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                met.append(f"{url} does not answer ({type(error).__name__}: {error})")
                continue
            if digest in models:
                limit = models[digest].get("max_model_len")
                return OutsideEngine(self._client, url, digest, limit if isinstance(limit, int) else None)
            met.append(f"{url} serves {', '.join(sorted(models)) or 'nothing'}")
        raise ArtifactError(
            f"No engine serves {digest}: {'; '.join(met)}. Start one with the snapshot under its digest, for example "
            f"`vllm serve {folder} --served-model-name {digest}`; it is found within seconds."
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
