"""How the two replies of a pair come about: sampled in the background, followed by any number of readers.

Sampling belongs to the pair and not to the request that asked for it: a reader who reloads or goes away changes
nothing. It survives a restart of the policy server (asked again with the same seeds), and after a restart of this
process the next request for the pair begins it anew, with the same weights, settings and seeds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.conversations.pairs import CandidateRow, Endpoint, PairRow, Sampled
from orchestrator.conversations.schemas import PairOut
from orchestrator.errors import ApiError
from orchestrator.people.tasks import Side
from orchestrator.web.outside_models import ContestantFails, OutsideModels, OutsideRequest, SecretOf, no_key
from orchestrator.web.policy_client import NoReply, PolicyRefused, PolicyReplies, PolicyUnavailable, ReplyRequest

logger = logging.getLogger(__name__)

Store = Callable[[list[Sampled]], Awaitable[dict[int, str]]]
"""Writes complete replies; returns what is stored by candidate id. StoreUnavailable while the database is away."""


class StoreUnavailable(Exception):
    """The database does not answer; the message is its reason, in one line."""


"""The value of a secret by the name of its environment variable; None where it is not set."""

# Pauses between attempts while the policy server restarts: it takes seconds, so they need not grow far.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# An outside model that is away is nobody's to restart: the rater learns of it sooner than of our own server's restart.
_OUTSIDE_PATIENCE_S = 20.0
# So long after a failure others are drawn in an outside model's place; then one pair tries it again.
_REST_S = 60.0


@dataclass(frozen=True)
class Event:
    """What a reader of a growing pair is told about one side."""

    side: Side
    delta: str = ""
    complete: bool = False
    restart: bool = False
    """Forget this side's text so far: after a fault it came out differently."""


class PairSampling:
    """The replies of one pair while they grow."""

    def __init__(self, pair: PairRow) -> None:
        self._held = pair.held
        self.texts: dict[Side, str] = {candidate.side: candidate.text or "" for candidate in pair.candidates}
        self.complete: set[Side] = {candidate.side for candidate in pair.candidates if candidate.text is not None}
        self.failure: ApiError | None = None
        self._changed = asyncio.Event()

    async def finished(self) -> dict[Side, str]:
        """Both texts once both are complete; raises the ApiError that ended the sampling."""
        while not self._ended():
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure
        return self.texts

    async def events(self) -> AsyncIterator[Event]:
        """Both sides as they grow, from their beginning; ends when both are complete or the sampling failed."""
        sent: dict[Side, str] = {"a": "", "b": ""}
        announced: set[Side] = set()
        while True:
            changed, ended = self._changed, self._ended()
            for side in sent if self.visible else ():
                text = self.texts[side]
                if not text.startswith(sent[side]):
                    yield Event(side, restart=True)
                    sent[side] = ""
                if len(text) > len(sent[side]):
                    yield Event(side, delta=text[len(sent[side]) :])
                    sent[side] = text
                if side in self.complete and side not in announced:
                    announced.add(side)
                    yield Event(side, complete=True)
            if ended:
                return
            await changed.wait()

    @property
    def visible(self) -> bool:
        """Whether readers may see what there is: of a pair that is held back, both replies at once."""
        return not self._held or len(self.complete) == 2

    def shown(self, pair: PairRow) -> PairOut:
        """What the rater sees of the pair while its replies grow, or when they have just become complete."""
        shown = pair.shown()
        if self.visible:
            shown.a.text, shown.b.text = self.texts["a"], self.texts["b"]
            shown.a.complete, shown.b.complete = "a" in self.complete, "b" in self.complete
        return shown

    def tell(self) -> None:
        """Wake every reader."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _ended(self) -> bool:
        return self.failure is not None or len(self.complete) == 2


class Sampler:
    """Runs the sampling of pairs, each at most once at a time in this process."""

    def __init__(
        self, policy: PolicyReplies, outside: OutsideModels, store: Store, timeout_s: float, secret_of: SecretOf
    ) -> None:
        self._policy = policy
        self._outside = outside
        self._secret_of = secret_of
        self._store = store
        self._timeout_s = timeout_s
        self._running: dict[int, PairSampling] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: str | None = None
        self._store_is_away = False

    def start(self, pair: PairRow, *, stream: bool) -> PairSampling:
        """Sample what the pair lacks, or join the sampling that is under way."""
        sampling = self._running.get(pair.id)
        if sampling is None:
            sampling = self._running[pair.id] = PairSampling(pair)
            # asyncio holds tasks weakly; without this set they could vanish in mid-flight.
            task = asyncio.create_task(self._run(pair, sampling, stream))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return sampling

    def resting(self) -> frozenset[str]:
        """Outside models that failed a moment ago."""
        return self._outside.resting(_REST_S)

    async def close(self) -> None:
        """Stop; what is incomplete is sampled again when somebody asks for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, pair: PairRow, sampling: PairSampling, stream: bool) -> None:
        missing = [candidate for candidate in pair.candidates if candidate.text is None]
        sampled = [candidate for candidate in missing if candidate.kind != "writer"]
        # What nobody sees grow need not come in pieces.
        stream = stream and not pair.held
        try:
            async with asyncio.timeout(self._timeout_s), asyncio.TaskGroup() as group:
                for candidates in _together(sampled):
                    group.create_task(self._sample(candidates, pair.prompt, sampling, stream))
            if sampled != missing:
                sampling.failure = being_written()
        except TimeoutError:
            logger.error("pair %d: no complete replies within %.0f s", pair.id, self._timeout_s)
            sampling.failure = self._too_late([one for one in missing if one.side not in sampling.complete])
        except BaseExceptionGroup as group_error:
            if (refused := _only(group_error, PolicyRefused)) is not None:
                logger.warning("pair %d: refused: %s", pair.id, refused[0])
                sampling.failure = _refused(refused)
            elif _only(group_error, NoReply) is not None:
                sampling.failure = _contestant_fails()
            else:
                sampling.failure = _unavailable()
                if (away := _only(group_error, StoreUnavailable)) is None:
                    logger.exception("pair %d: sampling failed", pair.id)
                elif not self._store_is_away:
                    # Every pair that is being sampled meets it, and once more whenever it is asked for.
                    self._store_is_away = True
                    logger.warning("replies can't be stored, and are sampled again when asked for: %s", away[0])
        finally:
            if self._running.get(pair.id) is sampling:
                del self._running[pair.id]
            if sampling.failure is None and len(sampling.complete) < 2:
                sampling.failure = _unavailable()
            sampling.tell()

    async def _sample(
        self, candidates: list[CandidateRow], prompt: list[dict[str, str]], sampling: PairSampling, stream: bool
    ) -> None:
        """Sample candidates of one snapshot, asking again for as long as the policy server is away."""
        pause_s, began_s = _FIRST_PAUSE_S, time.monotonic()
        while True:
            missing = [candidate for candidate in candidates if candidate.side not in sampling.complete]
            try:
                for together in _together(missing):
                    await self._attempt(together, prompt, sampling, stream)
                self._trouble = None
                return
            except PolicyUnavailable as error:
                endpoint = candidates[0].endpoint
                if endpoint is not None and time.monotonic() - began_s > _OUTSIDE_PATIENCE_S:
                    self._outside.note(endpoint.name, str(error))
                    raise ContestantFails(str(error)) from None
                # Hundreds of pairs wait for the same server: one line tells it.
                if self._trouble != str(error):
                    self._trouble = str(error)
                    logger.warning("asking the policy server again and again: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _attempt(
        self, candidates: list[CandidateRow], prompt: list[dict[str, str]], sampling: PairSampling, stream: bool
    ) -> None:
        first = candidates[0]
        if first.endpoint is not None:
            await self._ask_outside(first, first.endpoint, prompt, sampling)
            return
        if first.digest is None:
            raise RuntimeError(f"candidate {first.id} has neither weights nor an endpoint")
        request = ReplyRequest(first.digest, prompt, first.sampling, first.seed, len(candidates))
        texts = [""] * len(candidates)
        done: list[tuple[CandidateRow, Sampled]] = []
        async for delta in self._policy.replies(request, stream=stream):
            candidate = candidates[delta.index]
            texts[delta.index] += delta.text
            if delta.last:
                # Postgres text holds no NUL, which a byte-level model may write.
                text = texts[delta.index].replace("\x00", "\ufffd")
                reply = Sampled(candidate.id, text, delta.reply_tokens, delta.truncated, delta.details)
                done.append((candidate, reply))
                if stream:
                    await self._complete(done, sampling)
                    done = []
            elif len(texts[delta.index]) > len(sampling.texts[candidate.side]):
                # After a restart the text grows a second time; readers hear of it where it becomes longer.
                sampling.texts[candidate.side] = texts[delta.index].replace("\x00", "\ufffd")
                sampling.tell()
        await self._complete(done, sampling)

    async def _ask_outside(
        self, candidate: CandidateRow, endpoint: Endpoint, prompt: list[dict[str, str]], sampling: PairSampling
    ) -> None:
        key = None
        if endpoint.key_variable is not None:
            key = self._secret_of(endpoint.key_variable)
            if key is None:
                missing = no_key(endpoint.url, endpoint.key_variable)
                self._outside.note(endpoint.name, missing)
                raise ContestantFails(missing)
        request = OutsideRequest(endpoint.name, endpoint.url, endpoint.model, key, prompt, candidate.sampling)
        try:
            delta = await self._outside.reply(request)
        except (ContestantFails, PolicyRefused) as error:
            self._outside.note(endpoint.name, str(error))
            raise
        text = delta.text.replace("\x00", "\ufffd")
        reply = Sampled(candidate.id, text, delta.reply_tokens, delta.truncated, delta.details)
        await self._complete([(candidate, reply)], sampling)

    def _too_late(self, missing: list[CandidateRow]) -> ApiError:
        """What a rater is told after the last moment; the operator, which outside model was the one."""
        outside = [one.endpoint for one in missing if one.endpoint is not None]
        for endpoint in outside:
            self._outside.note(endpoint.name, f"{endpoint.url}: no reply within {self._timeout_s:.0f} s")
        return _contestant_fails() if outside else _unavailable()

    async def _complete(self, done: list[tuple[CandidateRow, Sampled]], sampling: PairSampling) -> None:
        """Store complete replies in one transaction, then let the readers see what is stored."""
        if not done:
            return
        stored = await self._store([reply for _, reply in done])
        if self._store_is_away:
            self._store_is_away = False
            logger.warning("replies are stored again")
        for candidate, reply in done:
            sampling.texts[candidate.side] = stored[reply.candidate_id]
            sampling.complete.add(candidate.side)
        sampling.tell()


def _together(candidates: list[CandidateRow]) -> list[list[CandidateRow]]:
    """Candidates grouped so that each group is one request: same snapshot and settings, seeds in a row."""
    groups: list[list[CandidateRow]] = []
    for candidate in candidates:
        last = groups[-1][-1] if groups else None
        alike = last and (last.digest, last.sampling, last.seed + 1) == (
            candidate.digest,
            candidate.sampling,
            candidate.seed,
        )
        # Best-of-k draws k seeds for each, so that the next seed is not the next reply's.
        if alike and candidate.kind == "policy":
            groups[-1].append(candidate)
        else:
            groups.append([candidate])
    return groups


def being_written() -> ApiError:
    """The answer while a person writes one of the replies: that takes longer than anybody should wait."""
    return ApiError(
        503,
        "being_written",
        "One of the replies takes a while. Go on with another conversation; this one stays on your home page.",
        retry_after_s=20,
    )


# What raters read must not tell which snapshot failed; the log does.
def _unavailable() -> ApiError:
    return ApiError(
        503,
        "replies_unavailable",
        "The replies could not be sampled now. Ask for the pair again with the same client_key; nothing is lost.",
        retry_after_s=2,
    )


def _contestant_fails() -> ApiError:
    return ApiError(
        503,
        "replies_unavailable",
        "One of the replies can't be had now; those who look after this have been told. Go on with another "
        "conversation; this one stays on your home page.",
        retry_after_s=60,
    )


def _refused(errors: list[PolicyRefused]) -> ApiError:
    if errors[0].code == "context_length_exceeded":
        return ApiError(422, "dialogue_too_long", "The dialogue is too long for the policies. End it, begin a new one.")
    return ApiError(422, "not_answerable", "The policies can't answer this dialogue. Begin a new one.")


E = TypeVar("E", bound=Exception)


def _only(group: BaseExceptionGroup[BaseException], kind: type[E]) -> list[E] | None:
    """The errors of a group where all of them are of one kind, else None."""
    found: list[E] = []
    for error in group.exceptions:
        inner = _only(error, kind) if isinstance(error, BaseExceptionGroup) else [error]
        if inner is None or not all(isinstance(one, kind) for one in inner):
            return None
        found += [one for one in inner if isinstance(one, kind)]
    return found
