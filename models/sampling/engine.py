"""The decode engine: replies sampled in one running batch that requests join and leave.

Training, evaluation and the policy server sample through this one engine. `llama.py` and `generic.py`
compute logits, `static.py` in steps that a GPU can replay; `draws.py` turns them into tokens.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from models.backbone.context import context_of
from models.backbone.precision import DTYPES, Precision
from models.runtime.random_numbers import uniforms
from models.sampling import llama
from models.sampling.draws import choose_tokens
from models.sampling.generic import GenericDecoder
from models.sampling.llama import LlamaDecoder
from models.sampling.static import StaticDecoder

Finished = Literal["stop", "length"]

# Prompt tokens, padding included, that one step may take in. It bounds the memory of a step and
# for how long running replies wait while others join.
_PREFILL_TOKENS = 16_384


@dataclass(frozen=True)
class SamplingParams:
    """How one reply is drawn.

    A reply depends on the weights, its prompt and these numbers; temperature 0 takes the
    likeliest token each time.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; a reply has at least one token")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a share above 0 and up to 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; expected a whole number from 0 to 2^64 - 1")


@dataclass
class Completion:
    """A finished reply: its ids, end-of-turn id included if it got that far.

    `logprobs` are natural logs under the model at temperature 1, whatever the sampling settings.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    finished: Finished


class Token(NamedTuple):
    """One new token of the reply that `handle` names; `finished` is set on its last one."""

    handle: int
    token_id: int
    logprob: float
    finished: Finished | None


class Decoder(Protocol):
    """What computes logits, one row per running request; newcomers are appended at the end."""

    def sync(self) -> None: ...
    def reserve(self, rows: int, length: int) -> None: ...
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor: ...
    def decode(self, ids: Tensor) -> Tensor: ...
    def drop(self, ended: set[int]) -> list[int]: ...


@dataclass
class _Request:
    handle: int
    prompt: list[int]
    params: SamplingParams
    ids: list[int] = field(default_factory=list)


class DecodeEngine:
    """Continuous batching: requests are submitted at any time and join at the next step.

    Log-probs equal the plain forward's up to rounding. Batches of another size round
    differently, so that a reply repeats exactly in the same batch, and in another batch unless a
    random number falls within rounding distance (about 1e-6) of the border between two tokens.

    Not thread-safe: one thread submits, steps and cancels.
    """

    def __init__(
        self,
        model: Any,
        eos_id: int | Collection[int],
        max_slots: int = 64,
        max_context: int | None = None,
        precision: Precision | None = None,
        graphs: bool | None = None,
        forward_tokens: int | None = None,
    ) -> None:
        """Serve `model` as it is now; call `sync` after its weights change.

        Args:
            eos_id: the id that ends a reply, or several each of which does.
            max_slots: replies decoded at the same time; further ones wait their turn.
            max_context: prompt and reply tokens of one request, by default what the model can hold.
            precision: in which replies are computed, by default the weights' own format. Another one holds a copy of
                the weights for Llama and its like, and converts them in every step for the others.
            graphs: decode Llama and its like in steps of few fixed shapes, which a GPU records and replays; by default
                on a GPU. On a CPU, where it costs time, only tests ask for it.
            forward_tokens: prompt tokens that join in one step, where fewer than usual; a longer prompt joins alone.
        """
        self.model = model
        self.eos_ids = frozenset((eos_id,) if isinstance(eos_id, int) else eos_id)
        self.max_slots = max_slots
        self.max_context = context_of(model) if max_context is None else max_context
        self._static: StaticDecoder | None = None
        self._decoder: Decoder
        if not llama.supports(model):
            self._decoder = GenericDecoder(model, precision or "float32")
        else:
            self._decoder = decoder = LlamaDecoder(model, DTYPES[precision] if precision else None)
            if graphs or (graphs is None and model.device.type == "cuda"):
                self._decoder = self._static = StaticDecoder(decoder, max_slots)
        self._prefill_tokens = min(_PREFILL_TOKENS, forward_tokens or _PREFILL_TOKENS)
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._next_handle = 0

    @property
    def active(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    def sync(self) -> None:
        """Read the model's weights again; only between replies, since cached keys belong to the old ones."""
        if self._running:
            raise RuntimeError(f"{len(self._running)} replies are running; finish or cancel them before sync()")
        self._decoder.sync()

    def reserve(self, length: int) -> None:
        """Make room for `max_slots` requests of `length` tokens now rather than as they come."""
        self._decoder.reserve(self.max_slots, length)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """Queue a request; gives the handle under which `step` reports its tokens.

        Raises:
            ValueError: an empty prompt, or prompt and reply do not fit the context.
        """
        if len(prompt_ids) == 0:
            raise ValueError("the prompt has no tokens; it needs at least the prefix of a reply")
        need = len(prompt_ids) + params.max_tokens
        if need > self.max_context:
            raise ValueError(
                f"{len(prompt_ids)} prompt tokens and a reply of up to {params.max_tokens} need a context of "
                f"{need}; this policy holds {self.max_context}. Shorten the prompt or lower max_tokens."
            )
        request = _Request(self._next_handle, list(prompt_ids), params)
        self._next_handle += 1
        self._waiting.append(request)
        return request.handle

    def cancel(self, handle: int) -> bool:
        """Drop a request; False where it is not waiting or running (any more)."""
        for index, request in enumerate(self._waiting):
            if request.handle == handle:
                del self._waiting[index]
                return True
        for row, request in enumerate(self._running):
            if request.handle == handle:
                self._drop({row})
                return True
        return False

    def close(self) -> None:
        """Drop every request; `step` then reports nothing."""
        self._waiting.clear()
        self._drop(set(range(len(self._running))))

    def step(self) -> list[Token]:
        """Give every running request its next token, newcomers their first; [] when idle."""
        if not self.active:
            return []
        logits = []
        if self._running:
            last = torch.tensor([request.ids[-1] for request in self._running], device=self.model.device)
            logits.append(self._decoder.decode(last))
        newcomers = self._newcomers()
        for group in newcomers:
            logits.append(self._decoder.prefill([request.prompt for request in group]))
            self._running.extend(group)
        ids, logps = self._draw(torch.cat(logits) if len(logits) > 1 else logits[0], fresh=bool(newcomers))
        tokens, ended = [], set()
        for row, (request, token_id, logp) in enumerate(zip(self._running, ids, logps, strict=True)):
            request.ids.append(token_id)
            finished: Finished | None = None
            if token_id in self.eos_ids:
                finished = "stop"
            elif len(request.ids) == request.params.max_tokens:
                finished = "length"
            if finished:
                ended.add(row)
            tokens.append(Token(request.handle, token_id, logp, finished))
        if ended:
            self._drop(ended)
        return tokens

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams] | SamplingParams
    ) -> list[Completion]:
        """Sample one reply for every prompt, in the prompts' order.

        Raises:
            RuntimeError: requests of somebody else are under way; their tokens would be lost.
        """
        if self.active:
            raise RuntimeError(f"{self.active} requests are under way; generate() needs the engine to itself")
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        completions: dict[int, Completion] = {}
        for prompt, settings in zip(prompts, each, strict=True):
            completions[self.submit(prompt, settings)] = Completion(list(prompt), [], [], "length")
        while self.active:
            for token in self.step():
                completion = completions[token.handle]
                completion.ids.append(token.token_id)
                completion.logprobs.append(token.logprob)
                if token.finished:
                    completion.finished = token.finished
        return list(completions.values())

    def _newcomers(self) -> list[list[_Request]]:
        """Waiting requests that fit now, first come first served, grouped so that little is padded."""
        chosen: list[_Request] = []
        tokens = 0
        while self._waiting and len(self._running) + len(chosen) < self.max_slots:
            tokens += len(self._waiting[0].prompt)
            if chosen and tokens > self._prefill_tokens:
                break
            chosen.append(self._waiting.popleft())
        chosen.sort(key=lambda request: (len(request.prompt), request.handle))
        groups: list[list[_Request]] = []
        for request in chosen:
            # A group may waste an eighth of its width; a handful of rows is not worth its own forward.
            if groups and (
                len(groups[-1]) < 4 or 8 * (len(request.prompt) - len(groups[-1][0].prompt)) <= len(request.prompt)
            ):
                groups[-1].append(request)
            else:
                groups.append([request])
        return groups

    def _draw(self, logits: Tensor, fresh: bool) -> tuple[list[int], list[float]]:
        """A token for every running request; `fresh` where some of the logits (n, V) are those of prompts."""
        settings = [request.params for request in self._running]
        seeds = np.array([s.seed for s in settings], dtype=np.uint64)
        positions = np.array([len(request.ids) for request in self._running], dtype=np.uint64)
        uniform = torch.from_numpy(uniforms(seeds, positions))
        plain = all(s.temperature == 1 and s.top_p == 1 for s in settings)
        if self._static is not None and self._static.works and plain and not fresh:
            return self._static.draw(uniform)
        ids, logps = choose_tokens(
            logits,
            uniform.to(logits.device),
            torch.tensor([s.temperature for s in settings]),
            torch.tensor([s.top_p for s in settings]),
        )
        return ids.tolist(), logps.tolist()

    def _drop(self, ended: set[int]) -> None:
        if ended:
            self._running = [self._running[row] for row in self._decoder.drop(ended)]
