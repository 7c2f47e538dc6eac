"""Rollouts: replies sampled from a policy with their scores and log-probs under policy and reference.

PPO learns from them, evaluation measures with them; both read log-probs in the same layout, so that a
policy with the initial policy's weights has a KL of exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone.batches import chunk_cost_of
from models.backbone.precision import Precision, filling
from models.chat.format import ChatFormat
from models.policy.critic import Critic
from models.policy.model import Policy
from models.policy.ppo import reply_kl
from models.policy.prompts import Prompt
from models.policy.reply_chunks import ReplyChunk, reply_chunks
from models.preference.model import PreferenceModel
from models.sampling.engine import Completion, DecodeEngine, SamplingParams

# Tokens of one forward pass where none are asked for: on CPU larger tensors leave the cache, on a GPU they fill it.
CHUNK_TOKENS_CPU = 1024
CHUNK_TOKENS_GPU = 32768

# How far the sampler's log-prob of a token may lie from the one that is read again, in nats. Measured over 2,048 tokens
# of untrained Llamas (docs/log/ppo.md, "PPO that is proven"): float32 up to 7e-6, bfloat16 up to 0.10. tf32 keeps three
# bits more than bfloat16, and was not measured.
SAMPLER_BOUNDS: dict[Precision, float] = {"float32": 1e-4, "tf32": 0.15 / 8, "bfloat16": 0.15}


@dataclass
class Rollout:
    """B replies; token tensors are (B, R), right-padded, 0 where `response_mask` is False."""

    prompts: list[Prompt]
    completions: list[Completion]
    texts: list[str]
    scores: Tensor  # (B,)
    response_mask: Tensor  # (B, R) bool
    logps: Tensor  # (B, R) under the policy that sampled them
    ref_logps: Tensor  # (B, R) under the initial policy
    entropies: Tensor  # (B, R) of the policy's choice of each token, exact
    values: Tensor  # (B, R) what the critic expected before each token; 0 without a critic

    @property
    def kl_nats(self) -> Tensor:
        """Sum of log pi/pi_0 over each reply, (B,)."""
        return reply_kl(self.logps, self.ref_logps, self.response_mask)

    @property
    def reply_tokens(self) -> Tensor:
        """Tokens of each reply, its end-of-turn token included, (B,)."""
        return self.response_mask.sum(dim=1)

    @property
    def sampler_gaps(self) -> Tensor:
        """|log-prob here - log-prob in the sampler| of every reply token, (N,), in nats."""
        said = [logp for completion in self.completions for logp in completion.logprobs]
        return (self.logps[self.response_mask] - torch.tensor(said, device=self.logps.device)).abs()

    @property
    def truncated(self) -> list[bool]:
        """Whether each reply was cut off at the cap."""
        return [completion.finished == "length" for completion in self.completions]


class RolloutCollector:
    """Samples, scores and measures replies of one policy against a fixed reference."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        preference_model: PreferenceModel,
        chat: ChatFormat,
        engine: DecodeEngine,
        device: torch.device,
        forward_tokens: int | None = None,
    ) -> None:
        """`forward_tokens`: those of one forward pass, scoring included; by default what fills the device."""
        # Where one of them has to call its modules the other must too, or equal weights would differ by rounding.
        policy.by_hand = reference.by_hand = policy.by_hand and reference.by_hand
        self.policy, self.reference, self.preference_model = policy, reference, preference_model
        self.chat, self.engine, self.device = chat, engine, device
        self.chunk_tokens = forward_tokens or (CHUNK_TOKENS_CPU if device.type == "cpu" else CHUNK_TOKENS_GPU)
        if forward_tokens is not None:
            preference_model.chunk_tokens = forward_tokens

    def sample(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> list[Completion]:
        """One reply per prompt."""
        return self.engine.generate([prompt.ids for prompt in prompts], params)

    def texts(self, completions: Sequence[Completion]) -> list[str]:
        """What a rater would read."""
        return [self.chat.decode(completion.ids) for completion in completions]

    def scores(
        self, prompts: Sequence[Prompt], texts: Sequence[str], preference_model: PreferenceModel | None = None
    ) -> list[float]:
        """PM score of each reply as raters would read it: of its text, not of the ids that spelled it.

        By the collector's preference model, or by another one: the watcher.
        """
        return (preference_model or self.preference_model).score_sequences(
            [
                [*prompt.ids, *self.chat.encode_reply(text), self.chat.score_id]
                for prompt, text in zip(prompts, texts, strict=True)
            ]
        )

    def chunks(self, completions: Sequence[Completion], rows: Sequence[int], width: int) -> list[ReplyChunk]:
        """The chosen rows laid out for a forward pass."""
        return reply_chunks(
            [completion.prompt_ids for completion in completions],
            [completion.ids for completion in completions],
            rows,
            width=width,
            pad_id=self.chat.pad_id,
            chunk_tokens=self.chunk_tokens,
            device=self.device,
            fill=filling(self.policy.precision, self.device),
            chunk_cost=chunk_cost_of(self.policy.model),
        )

    def mask(self, completions: Sequence[Completion]) -> Tensor:
        """(B, R) True where a reply has a token; R is the longest reply."""
        lengths = torch.tensor([len(completion.ids) for completion in completions], device=self.device)
        return torch.arange(int(lengths.max()), device=self.device)[None] < lengths[:, None]

    def measure(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        texts: Sequence[str],
        scores: Sequence[float],
        chunks: Sequence[ReplyChunk] | None = None,
        critic: Critic | None = None,
    ) -> Rollout:
        """Log-probs of sampled and scored replies, in the layout of `chunks` (by default, all rows together)."""
        mask = self.mask(completions)
        if chunks is None:
            chunks = self.chunks(completions, range(len(completions)), mask.shape[1])
        shape = (mask.shape[0], mask.shape[1])
        reading = self.policy.read(chunks, shape, critic)
        return Rollout(
            prompts=list(prompts),
            completions=list(completions),
            texts=list(texts),
            scores=torch.tensor(scores, device=self.device),
            response_mask=mask,
            logps=reading.logps,
            ref_logps=self.reference.read(chunks, shape).logps,
            entropies=reading.entropies,
            values=reading.values,
        )
