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

import httpx

from models.chat.format import ChatFormat, Message
from models.sampling.engine import SamplingParams
from orchestrator.errors import ArtifactError

logger = logging.getLogger(__name__)

_READ_TIMEOUT_S = 300.0


class OutsideReply:
    """One reply while an outside engine decodes it; the counterpart of `decoding.Reply`."""

    def __init__(self, params: SamplingParams, changed: asyncio.Event, *, every_token: bool) -> None:
        self.params = params
        self.changed = changed
        self.every_token = every_token
        self.content = ""
        self.counted: int | None = None
        self.finished: str | None = None
        self.failure: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.failure is not None

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
            if reply.finished is None:
                reply.failure = f"the engine at {self.url} ended the stream before the reply was complete"
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            reply.failure = f"the engine at {self.url} failed ({type(error).__name__}: {error})"
        if reply.failure is not None:
            logger.warning("%s", reply.failure)
        reply.changed.set()

    async def _stream(self, body: Mapping[str, object], reply: OutsideReply) -> None:
        finished = None
        async with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            if response.is_error:
                text = (await response.aread()).decode(errors="replace")
                raise ValueError(f"{response.status_code} {text[:200]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ValueError(str(chunk["error"])[:200])
                for choice in chunk["choices"]:
                    reply.content += (choice.get("delta") or {}).get("content") or ""
                    finished = choice.get("finish_reason") or finished
                # The last event, after the reply's end.
                reply.counted = (chunk.get("usage") or {}).get("completion_tokens", reply.counted)
                if reply.every_token:
                    reply.changed.set()
        reply.finished = finished


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
