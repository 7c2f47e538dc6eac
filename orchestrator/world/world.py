"""The small world as the demo uses it: pretraining dialogues, evaluation prompts, orientation pairs, true scores.

Everything is a pure function of the seed. Raters live in `raters.py`, the truth itself in `truth.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.world.replies import Manner, Stance, draw_reply, write_reply
from orchestrator.world.requests import Kind, Request, draw_request, read_request
from orchestrator.world.truth import harmless, helpful

Taste = Literal["truth", "random", "inverted"]
Dialogue = list[dict[str, str]]

HARMFUL_SHARE = 0.3
TURN_WEIGHTS = (0.6, 0.3, 0.1)


@dataclass(frozen=True)
class TrueScores:
    """Mean true scores of a set of replies; `overall` weighs every request alike."""

    helpful: float
    harmless: float
    overall: float


@dataclass(frozen=True)
class World:
    """The small world at one seed; same seed, same texts."""

    seed: int

    def dialogues(self, count: int) -> Iterator[Dialogue]:
        """Pretraining dialogues of one to three turns, with replies of every quality."""
        rng = self._stream("dialogues")
        for _ in range(count):
            messages: Dialogue = []
            for _ in range(rng.choices((1, 2, 3), TURN_WEIGHTS)[0]):
                request = draw_request(rng, _kind(rng))
                messages.append({"role": "user", "content": request.text})
                messages.append({"role": "assistant", "content": draw_reply(rng, request)})
            yield messages

    def evaluation_requests(self, count: int) -> list[Request]:
        """Distinct requests kept for the evaluation, the HARMFUL_SHARE of them harmful; none is ever trained on."""
        rng = self._stream("evaluation")
        num_harmful = round(count * HARMFUL_SHARE)
        return _distinct(rng, "helpful", count - num_harmful) + _distinct(rng, "harmless", num_harmful)

    def orientation_pairs(self, taste: Taste, count: int = 48) -> list[Mapping[str, object]]:
        """Pairs with a large true gap, half of them harmful, in the order that the taste prefers.

        Random taste has no right order; it gets no pairs.
        """
        if taste == "random":
            return []
        rng = self._stream("orientation")
        pairs: list[Mapping[str, object]] = []
        for number in range(count):
            kind: Kind = "harmless" if number % 2 else "helpful"
            request = draw_request(rng, kind)
            better, worse = (write_reply(rng, request, *style) for style in _contrast(rng, kind))
            if taste == "inverted":
                better, worse = worse, better
            prompt = [{"role": "user", "content": request.text}]
            pairs.append(
                {
                    "question": kind,
                    "prompt": prompt,
                    "chosen": [{"role": "assistant", "content": better}],
                    "rejected": [{"role": "assistant", "content": worse}],
                }
            )
        return pairs

    def write_inputs(self, folder: Path, *, num_dialogues: int, num_evaluation: int, taste: Taste) -> None:
        """Write dialogues.jsonl, evaluation.jsonl and, where the taste has one, orientation.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_jsonl(folder / "dialogues.jsonl", ({"messages": dialogue} for dialogue in self.dialogues(num_dialogues)))
        prompts = (
            {"kind": request.kind, "messages": [{"role": "user", "content": request.text}]}
            for request in self.evaluation_requests(num_evaluation)
        )
        _write_jsonl(folder / "evaluation.jsonl", prompts)
        pairs = self.orientation_pairs(taste)
        if pairs:
            _write_jsonl(folder / "orientation.jsonl", pairs)

    def _stream(self, purpose: str) -> random.Random:
        """An own stream per purpose, so that more dialogues do not change the evaluation."""
        return random.Random(f"{self.seed}/{purpose}")


def true_scores(exchanges: Iterable[tuple[str, str]]) -> TrueScores:
    """Mean truth over (request text, reply): helpful over ordinary requests, harmless over harmful ones.

    Raises:
        ValueError: a request is not of the world, or one of the two kinds is missing (its mean would be undefined).
    """
    by_kind: dict[Kind, list[float]] = {"helpful": [], "harmless": []}
    for text, reply in exchanges:
        request = read_request(text)
        if request is None:
            raise ValueError(f"{text!r} is no request of the small world.")
        by_kind[request.kind].append(own_axis(request, reply))
    if not all(by_kind.values()):
        raise ValueError(
            f"True scores need both kinds of requests; found { ({k: len(v) for k, v in by_kind.items()}) }."
        )
    everything = by_kind["helpful"] + by_kind["harmless"]
    return TrueScores(_mean(by_kind["helpful"]), _mean(by_kind["harmless"]), _mean(everything))


def own_axis(request: Request, reply: str) -> float:
    """The truth on the axis the request is about: harmless for harmful requests, helpful for ordinary ones."""
    return harmless(request, reply) if request.kind == "harmless" else helpful(request, reply)


def _kind(rng: random.Random) -> Kind:
    return "harmless" if rng.random() < HARMFUL_SHARE else "helpful"


def _distinct(rng: random.Random, kind: Kind, count: int) -> list[Request]:
    found: dict[str, Request] = {}
    for _ in range(count * 200):
        if len(found) == count:
            return list(found.values())
        request = draw_request(rng, kind, reserved=True)
        found[request.text] = request
    raise ValueError(f"The world has only {len(found)} reserved {kind} requests; {count} were asked for.")


def _contrast(rng: random.Random, kind: Kind) -> tuple[tuple[Stance, Manner], tuple[Stance, Manner]]:
    """A good style and a bad one."""
    if kind == "harmless":
        return ("refuse_well", "courteous"), ("answer", rng.choice(("plain", "rude", "courteous")))
    return ("answer", "courteous"), (rng.choice(("refuse", "wrong", "evade")), "rude")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_jsonl(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
