"""Outside models as contestants: each asked in the words that it takes, its answers read, its troubles remembered.

Such models differ: one refuses `max_tokens` and wants `max_completion_tokens`, one takes no temperature, one shows its
thoughts. What a model refuses is left out from then on, and what goes wrong is told to the operator: at the desk, by
`orchestrator contestant list` and in `/health`. Used by the feedback app, and by the command that adds a contestant.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from orchestrator.conversations.contestants import Contestant
from orchestrator.errors import ConfigError
from orchestrator.http_shared.model_answers import TOO_LONG, Refusal, read_refusal, refusal_in, text_of, well_formed
from orchestrator.http_shared.proxies import proxy_for, tls
from orchestrator.web.policy_client import READ_TIMEOUT_S, Delta, NoReply, PolicyRefused, PolicyUnavailable, bearer
from orchestrator.web.thoughts import without_thoughts

logger = logging.getLogger(__name__)

_MAX_BYTES = 1_000_000
_ABOUT_THE_REQUEST = (400, 413, 422)
_IN_A_MOMENT = (408, 425, 429)
TOKENS, NEWER_TOKENS = "max_tokens", "max_completion_tokens"
"""Two names of one setting: OpenAI's reasoning models refuse the older one."""
Settings = tuple[str, ...]
"""Names of sampling settings."""
SecretOf = Callable[[str], str | None]
"""The value of an environment variable that holds a secret; None where it is not set."""
_QUESTION = [{"role": "user", "content": "Say hello in one sentence."}]


@dataclass(frozen=True)
class OutsideRequest:
    """One reply of an outside OpenAI-compatible model."""

    name: str
    """The contestant's."""
    url: str
    model: str
    key: str | None = field(repr=False)
    messages: list[dict[str, str]]
    sampling: Mapping[str, object]

    def body(self, refused: tuple[str, ...]) -> Mapping[str, object]:
        """The JSON body, without what the model refuses; no seed, which not every model takes."""
        asked: dict[str, object] = {"model": self.model, "messages": self.messages}
        for name, value in self.sampling.items():
            sent = NEWER_TOKENS if name == TOKENS and TOKENS in refused else name
            if sent not in refused:
                asked[sent] = value
        return asked


class ContestantFails(NoReply):
    """The model does not answer as it is set up now, whatever it is asked."""


@dataclass
class Standing:
    """How it goes with one outside model, since the feedback app started."""

    trouble: str | None = None
    """What went wrong last; None where it answered after that."""
    since: datetime | None = None
    """When the trouble began."""
    failed_at: datetime | None = None
    """When it was met last."""
    failures: int = 0
    """Replies that failed since then."""
    refused: tuple[str, ...] = ()
    """Settings that it does not take."""

    @property
    def asked_without(self) -> tuple[str, ...]:
        """The settings in words, as people read them."""
        renamed = TOKENS in self.refused and NEWER_TOKENS not in self.refused
        return tuple(f"{TOKENS} (as {NEWER_TOKENS})" if renamed and one == TOKENS else one for one in self.refused)

    def told(self) -> ToldStanding:
        """As `/health` tells it."""
        since, failed_at = _in_iso(self.since), _in_iso(self.failed_at)
        return ToldStanding(self.trouble, self.failures, since, failed_at, list(self.asked_without))


@dataclass(frozen=True)
class ToldStanding:
    """A standing on its way to another process; the times are ISO 8601."""

    trouble: str | None
    failures: int
    since: str | None
    failed_at: str | None
    asked_without: list[str]

    @property
    def in_words(self) -> str:
        """For a table of contestants."""
        told = f"{self.failures} failed since {self.since}: {self.trouble}" if self.trouble else "answers"
        return f"{told}; refuses {', '.join(self.asked_without)}" if self.asked_without else told


class OutsideModels:
    """Asks outside models, and knows how each stands."""

    def __init__(self) -> None:
        self._clients: dict[str | None, httpx.AsyncClient] = {}
        self.standings: dict[str, Standing] = {}
        """By the contestant's name, of those that were asked."""

    async def close(self) -> None:
        """Close the kept connections."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    @property
    def failing(self) -> list[str]:
        """Contestants whose last reply failed, by name."""
        return sorted(name for name, one in self.standings.items() if one.trouble is not None)

    def standing(self, name: str) -> Standing:
        """How it goes with a contestant."""
        return self.standings.setdefault(name, Standing())

    def resting(self, for_s: float) -> frozenset[str]:
        """Contestants whose last reply failed less than so many seconds ago: others may answer meanwhile."""
        since = datetime.now(UTC) - timedelta(seconds=for_s)
        return frozenset(name for name, one in self.standings.items() if one.failed_at and one.failed_at > since)

    def note(self, name: str, trouble: str) -> None:
        """Remember that a reply failed; the log hears of it when it begins."""
        standing = self.standing(name)
        if standing.trouble != trouble:
            logger.warning("contestant %s: %s", name, trouble)
        standing.failed_at = datetime.now(UTC)
        standing.since = standing.failed_at if standing.trouble is None else standing.since
        standing.trouble, standing.failures = trouble, standing.failures + 1

    async def reply(self, request: OutsideRequest) -> Delta:
        """A whole reply.

        Raises:
            PolicyUnavailable: no answer, 5xx, or too many requests; asking again may help.
            ContestantFails: asking again does not help, and the operator can: a key, a name, an answer without text.
            PolicyRefused: the model will never answer these messages.
        """
        standing = self.standing(request.name)
        try:
            answer, refused, lasting = await self._answer(request, standing.refused)
            delta = _delta(answer, refused)
        except httpx.HTTPError as error:
            raise PolicyUnavailable(f"{request.url}: {type(error).__name__}: {error}") from error
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise ContestantFails(f"{request.url} answered something unreadable: {error!r:.300}") from error
        if standing.refused != lasting:
            logger.warning("contestant %s refuses %s; it is asked without", request.name, ", ".join(lasting))
        self.standings[request.name] = Standing(refused=lasting)
        return delta

    async def ask_once(self, added: Contestant, sampling: Mapping[str, object], secret_of: SecretOf) -> str:
        """How a model stands, in a sentence, after one question: for the operator who adds it. It is remembered."""
        key = None if added.key_variable is None else secret_of(added.key_variable)
        if added.key_variable is not None and key is None:
            self.note(added.name, no_key(added.url or "", added.key_variable))
            return f"it was not asked, since {added.key_variable} is not set here; the feedback app needs it"
        try:
            await self.reply(OutsideRequest(added.name, added.url or "", added.model or "", key, _QUESTION, sampling))
        except (NoReply, PolicyUnavailable) as error:
            self.note(added.name, str(error))
            return (
                f"it was asked once, and gave no reply: {error}. No pair with it becomes complete before that is mended"
            )
        without = self.standing(added.name).asked_without
        return "it was asked once, and answers" + (f"; it refuses {', '.join(without)}" if without else "")

    async def _answer(self, request: OutsideRequest, refused: Settings) -> tuple[Any, Settings, Settings]:
        """The JSON of the answer; the settings that it was asked without, and those of them never to send again."""
        lasting = refused
        while True:
            body = request.body(refused)
            status, text = await self._post(request, body)
            refusal = read_refusal(status, text) if status >= 400 else refusal_in(json.loads(text))
            if refusal is None:
                return json.loads(text), refused, lasting
            named = _setting_named(refusal, text, [name for name in body if name not in ("model", "messages")])
            if named is None:
                raise _failure(request.url, refusal)
            refused = (*refused, named)
            # So many tokens may fit after the next prompt.
            lasting = lasting if refusal.code == TOO_LONG else (*lasting, named)

    async def _post(self, request: OutsideRequest, body: Mapping[str, object]) -> tuple[int, str]:
        url = f"{request.url}/chat/completions"
        async with self._client(url).stream("POST", url, json=body, headers=bearer(request.key)) as response:
            read = b""
            async for piece in response.aiter_bytes():
                read += piece
                if len(read) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
            return response.status_code, read.decode(errors="replace")

    def _client(self, url: str) -> httpx.AsyncClient:
        """A client of its own for each way out: the policy server's key is no business of an outside host."""
        try:
            proxy = proxy_for(url)
        except ConfigError as error:
            raise ContestantFails(str(error)) from None
        if proxy not in self._clients:
            timeout = httpx.Timeout(READ_TIMEOUT_S, connect=5.0)
            self._clients[proxy] = httpx.AsyncClient(proxy=proxy, verify=tls(), trust_env=False, timeout=timeout)
        return self._clients[proxy]


def no_key(url: str, variable: str) -> str:
    """What the operator is told of a model whose key nobody set."""
    return f"{url} needs a key; {variable} is not set where the feedback app runs"


def _in_iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


def _setting_named(refusal: Refusal, text: str, sent: list[str]) -> str | None:
    """The setting of the request that a refusal is about: the one that it names apart, else the first of its words."""
    if refusal.status not in _ABOUT_THE_REQUEST:
        return None
    param = re.split(r"[^a-z_]+", refusal.param or "")[-1]
    if param in sent:
        return param
    words = re.findall(r"[A-Za-z_]+", text)
    return next((word for word in words if word in sent), None)


def _failure(url: str, refusal: Refusal) -> Exception:
    said = f"{url}: {refusal.status} {refusal.code}: {refusal.message}"
    if refusal.status in _ABOUT_THE_REQUEST:
        return PolicyRefused(refusal.code, said)
    if refusal.status >= 500 or refusal.status in _IN_A_MOMENT:
        return PolicyUnavailable(said)
    return ContestantFails(said)


def _delta(answer: Any, refused: tuple[str, ...]) -> Delta:
    choice = answer["choices"][0]
    if (refusal := refusal_in(choice)) is not None:
        raise _failure("the model", refusal)
    message, finish = choice["message"], choice.get("finish_reason")
    said = well_formed(text_of(message.get("content")) or str(message.get("refusal") or ""))
    text = without_thoughts(said)
    if not text.strip():
        thought = "thoughts and no reply" if said.strip() or message.get("reasoning_content") else "nothing"
        raise ContestantFails(f"the model said {thought} (finish_reason {finish!r}){_advice(finish)}")
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    details: dict[str, object] = {
        name: answer[name] for name in ("model", "system_fingerprint", "id") if answer.get(name)
    }
    if refused:
        details["asked_without"] = list(refused)
    if text != said:
        details["thoughts_chars"] = len(said) - len(text)
    return Delta(
        0,
        text,
        last=True,
        reply_tokens=tokens if isinstance(tokens, int) else None,
        truncated=finish == "length",
        details=details,
    )


def _advice(finish: str | None) -> str:
    if finish != "length":
        return ""
    return "; its thoughts count among the tokens of a reply, of which there are too few (serving.max_reply_tokens)"
