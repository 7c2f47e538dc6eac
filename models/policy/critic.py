"""The critic: predicts before each reply token what the rest of the reply will earn.

It reads the policy's own states (`shared`, `detached`) or has a trunk of its own, a copy of the initial policy's
(`separate`) or of the preference model's (`preference_model`). Read next: `models/jobs/train_policy.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone.precision import Precision, computing_exactly, computing_in
from models.backbone.trunk import states_at
from models.policy.reply_chunks import ReplyChunk
from models.policy.settings import CriticKind


def copy_to_train(trunk: Any) -> Any:
    """A copy of a trunk, all of which can be trained."""
    return copy.deepcopy(trunk).requires_grad_(True)


class Critic(nn.Module):
    """A value head on the states of a trunk; without a trunk of its own, on the policy's."""

    def __init__(
        self,
        kind: CriticKind,
        trunk: Any,
        seed: int = 0,
        precision: Precision = "float32",
        *,
        to_train: Callable[[Any], Any] = copy_to_train,
    ) -> None:
        """A critic that expects 0 everywhere.

        Args:
            trunk: the model to read states from. `separate` and `preference_model` copy it, so that it is left
                as it is; of the others only its width is taken.
            to_train: gives the trunk that is trained for the one given; `Roles.trunk_to_train` with adapters.
        """
        super().__init__()
        self.kind, self.precision = kind, precision
        self.trunk = to_train(trunk) if kind in ("separate", "preference_model") else None
        head = ValueHead(trunk.config.hidden_size, seed)
        # Tensors without memory (models/memory/passes.py) can't be moved, not even to where they are.
        self.head = head if trunk.device == head.outer.weight.device else head.to(trunk.device)

    @property
    def own_trunk(self) -> list[nn.Parameter]:
        """What is trained of its own trunk; nothing where it reads the policy's states."""
        return [] if self.trunk is None else [p for p in self.trunk.parameters() if p.requires_grad]

    def forward(self, chunk: ReplyChunk, policy_states: Tensor) -> Tensor:
        """Values (N,) of the chunk's reply tokens; `policy_states` (N, D) are what the policy read there."""
        if self.trunk is None:
            return self.head(policy_states if self.kind == "shared" else policy_states.detach())
        with computing_in(self.precision, chunk.ids.device):
            states = states_at(self.trunk, chunk.ids, chunk.positions)
        return self.head(states)

    def expect(self, value: float) -> None:
        """Predict this value, in PM units, before anything was learned."""
        with torch.no_grad():
            self.head.outer.bias.fill_(value)


class ValueHead(nn.Module):
    """From a hidden state to a value.

    One hidden layer; its last layer starts at zero, so that every value starts at `bias`.
    """

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(hidden_size, hidden_size, generator=generator) * hidden_size**-0.5)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, states: Tensor) -> Tensor:
        """States (N, D) to values (N,)."""
        with computing_exactly(states.device):
            return self.outer(torch.tanh(self.inner(states.float())))[:, 0]
