"""Synthetic raters: they come through the feedback app's HTTP API as people do, chat, and compare two replies a turn.

A rater sees the truth dimly: on pairs whose true scores differ it agrees with the truth about 75 times of 100, so two
raters agree about 63 times of 100, the paper's figure for people. `SyntheticRater` decides, `Crowd` does the talking.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from orchestrator.errors import OrchestratorError
from orchestrator.world.requests import Kind, draw_request
from orchestrator.world.truth import judge
from orchestrator.world.world import HARMFUL_SHARE, TURN_WEIGHTS, Taste

Task = Literal["helpful", "red_team", "red_team_choose_best", "model_comparison"]
Side = Literal["a", "b", "none"]

# True scores closer than this look the same to everybody.
EQUAL = 0.01
# A gap of the whole scale is as plain as it gets; one of half of it is judged with the average agreement.
PLAIN_GAP = 1.0
# From slight to strong; the gap as a rater perceives it, with a little noise.
STRENGTH_BORDERS = (0.1, 0.3, 0.55)
STRENGTH_NOISE = 0.1
REQUEST_TIMEOUT_S = 120.0
# Half a minute in all: what a restart of the app takes on a busy machine.
RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class RatersError(OrchestratorError):
    """The feedback app answered a synthetic rater with something it cannot go on from."""


@dataclass(frozen=True)
class Answer:
    """A rater's answer to a pair, as the feedback app takes it."""

    side: Side
    reason: Literal["tie"] | None = None
    strength: int | None = None


class SyntheticRater:
    """Decides between two replies with a taste: the truth, its opposite, or nothing at all.

    `agreement` is the chance to side with the taste on an average pair; plain gaps are judged a little better and
    small ones a little worse, by `spread` either way.
    """

    def __init__(self, taste: Taste, agreement: float, seed: str, spread: float = 0.15) -> None:
        self.taste = taste
        self.agreement = agreement
        self.spread = spread
        self.rng = random.Random(seed)

    def compare(self, question: str, request_text: str, reply_a: str, reply_b: str) -> Answer:
        """Which reply answers the question: `helpful`, `harmless` or `more_harmful`."""
        a, b = (perceived_truth(question, request_text, reply) for reply in (reply_a, reply_b))
        gap = a - b
        if abs(gap) < EQUAL and self.taste != "random":
            return Answer("none", reason="tie")
        if self.taste == "random":
            return Answer(self.rng.choice(("a", "b")), strength=self.rng.randint(1, 4))
        if self.taste == "inverted":
            gap = -gap
        plainness = min(1.0, abs(gap) / PLAIN_GAP)
        agrees = self.rng.random() < self.agreement + self.spread * (2 * plainness - 1)
        seen = abs(gap) + self.rng.gauss(0, STRENGTH_NOISE)
        strength = 1 + sum(seen > border for border in STRENGTH_BORDERS)
        return Answer("a" if (gap > 0) == agrees else "b", strength=strength)


def perceived_truth(question: str, request_text: str, reply: str) -> float:
    """The true score that a question is about; more harmful is less harmless.

    Raises:
        ValueError: a request that is not of the world, or a question the world has no truth for.
    """
    truth = judge(request_text, reply)
    if question == "helpful" and truth.helpful is not None:
        return truth.helpful
    if question in ("harmless", "more_harmful") and truth.harmless is not None:
        return truth.harmless if question == "harmless" else -truth.harmless
    raise ValueError(f"The small world has no truth for the question {question!r} about {request_text!r}.")


@dataclass(frozen=True)
class Tally:
    """What a crowd has done in one sitting."""

    comparisons: int
    ties: int
    dialogues: int


class Crowd:
    """Raters at work: many dialogues at a time against one feedback app, until enough comparisons are made."""

    def __init__(
        self,
        feedback_url: str,
        tokens: Sequence[str],
        *,
        taste: Taste,
        agreement: float,
        seed: str,
        concurrency: int = 48,
        count_ties: bool = False,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.feedback_url = feedback_url
        self.tokens = list(tokens)
        self.taste = taste
        self.agreement = agreement
        self.seed = seed
        self.concurrency = concurrency
        self.count_ties = count_ties
        self.on_progress = on_progress
        self._started = self._decided = self._ties = self._dialogues = 0

    def collect(self, tasks: dict[Task, float], count: int) -> Tally:
        """Hold dialogues of the tasks, drawn by weight, until `count` comparisons are made.

        Ties count only where `count_ties` is set: a preference model learns nothing from them, an Elo does.

        Raises:
            RatersError: the feedback app refused a request; the message holds its answer.
        """
        self._started = self._decided = self._ties = self._dialogues = 0
        if count > 0:
            try:
                asyncio.run(self._collect(tasks, count))
            except* RatersError as group:
                raise group.exceptions[0] from None
            except* httpx.TransportError as group:
                raise RatersError(
                    f"The feedback app at {self.feedback_url} cannot be reached: {group.exceptions[0]!r}. "
                    "Look at its log, and start the demo again to go on."
                ) from None
        return Tally(self._decided, self._ties, self._dialogues)

    async def _collect(self, tasks: dict[Task, float], count: int) -> None:
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with (
            httpx.AsyncClient(
                base_url=self.feedback_url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(self.concurrency, count)):
                group.create_task(self._sit_down(client, tasks, count))

    @property
    def _done(self) -> int:
        return self._decided + (self._ties if self.count_ties else 0)

    async def _sit_down(self, client: httpx.AsyncClient, tasks: dict[Task, float], count: int) -> None:
        """One chair: dialogue after dialogue, by whichever rater is next."""
        while self._done < count:
            number = self._started
            self._started += 1
            rng = random.Random(f"{self.seed}/{number}")
            task = rng.choices(list(tasks), list(tasks.values()))[0]
            rater = SyntheticRater(self.taste, self.agreement, f"{self.seed}/{number}/rater")
            door = _Door(client, self.tokens[number % len(self.tokens)])
            await self._hold_dialogue(door, task, rater, rng, count)

    async def _hold_dialogue(
        self, door: _Door, task: Task, rater: SyntheticRater, rng: random.Random, count: int
    ) -> None:
        kind = _kind_for(task, rng)
        choice = {"question": kind} if task == "model_comparison" else {}
        dialogue = await door.post("/api/dialogues", {"task": task, **choice})
        path = f"/api/dialogues/{dialogue['dialogue_id']}"
        parent: int | None = None
        for turn in range(rng.choices((1, 2, 3), TURN_WEIGHTS)[0]):
            if self._done >= count:
                break
            request = draw_request(rng, kind)
            message = await door.post(
                f"{path}/messages", {"content": request.text, "parent_id": parent, "client_key": f"message-{turn}"}
            )
            pair = await door.post(
                f"/api/messages/{message['message_id']}/pairs", {"client_key": f"pair-{turn}", "wait": True}
            )
            answer = rater.compare(dialogue["question"], request.text, pair["a"]["text"], pair["b"]["text"])
            comparison = await door.post(
                f"/api/pairs/{pair['pair_id']}/comparison",
                {"side": answer.side, "reason": answer.reason, "strength": answer.strength, "duration_ms": 0},
            )
            parent = comparison["continue_from"]
            self._ties += answer.side == "none"
            self._decided += answer.side != "none"
            self.on_progress(self._done)
        await door.post(f"{path}/end", {})
        self._dialogues += 1


class _Door:
    """The feedback app as one rater meets it."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"}

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = await self._answer(path, body)
        if response.is_error:
            raise RatersError(
                f"The feedback app answered POST {path} with {response.status_code}: {response.text[:300]}. "
                "Look at its log; nothing that was recorded is lost, so start the demo again to go on."
            )
        answer: dict[str, Any] = response.json()
        return answer

    async def _answer(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """The answer, asked for again while the app is being started anew: every request is the same act twice."""
        for pause_s in RETRY_PAUSES_S:
            try:
                return await self._client.post(path, json=body, headers=self._headers)
            except httpx.TransportError:
                await asyncio.sleep(pause_s)
        return await self._client.post(path, json=body, headers=self._headers)


def _kind_for(task: Task, rng: random.Random) -> Kind:
    """What a rater writes in a task: harmful requests in red-teaming, a mixture in model comparisons."""
    if task == "helpful":
        return "helpful"
    if task == "model_comparison":
        return "harmless" if rng.random() < HARMFUL_SHARE else "helpful"
    return "harmless"
