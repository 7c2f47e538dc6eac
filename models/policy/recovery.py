"""Recovery: PPO goes back to its last good weights and on with a smaller step, before it gives up.

Good weights are those that wrote a rollout while no wire was beyond its bound. `LastGood` holds them with what learning
from them needs; `smaller_step_helps` says which wires are answered so. Used by models/policy/training.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from models.backbone.adapters import learned_state, restore
from models.policy.learning import LearnerState, PolicyLearner
from models.policy.results import LEARNED_WIRES
from models.runtime.checkpoints import on_host

TOO_LARGE_A_STEP = ("not_finite", "ratio", "clip_fraction")
"""Wires that tell of the step itself, whenever they trip."""


@dataclass(frozen=True)
class Tripped:
    """The wire that ends a run, if nothing else helps, and what was found, in words."""

    wire: str
    found: str


def smaller_step_helps(wire: str, *, at_start: bool) -> bool:
    """Whether a run that a wire stops would do better with a smaller learning rate.

    A policy that has learned too much is no matter of the step, unless it got there from the start in a step or two.
    """
    return wire in TOO_LARGE_A_STEP or (at_start and wire in LEARNED_WIRES)


@dataclass(frozen=True)
class LastGood:
    """The last good weights, in the host's memory: most runs never need them.

    What only a recovery needs is None where the run may not recover: the optimiser's state is twice as large as the
    weights.
    """

    policy: Mapping[str, Tensor]
    rounds: int
    """Rounds of learning that are in the weights."""
    critic: Mapping[str, Tensor] | None = None
    learner: LearnerState | None = None

    @classmethod
    def now(
        cls, model: nn.Module, critic: nn.Module | None, learner: PolicyLearner, rounds: int, *, whole: bool
    ) -> LastGood:
        """A copy of what is there; `whole` with what a recovery needs."""
        policy = on_host(learned_state(model))
        if not whole:
            return cls(policy, rounds)
        values = {} if critic is None else on_host(learned_state(critic))
        return cls(policy, rounds, values, on_host(learner.state))

    def bring_back(self, model: nn.Module, critic: nn.Module | None, learner: PolicyLearner) -> None:
        """Put everything back as it was, but for the number of steps that were taken."""
        assert self.critic is not None
        assert self.learner is not None
        restore(model, self.policy)
        if critic is not None:
            restore(critic, self.critic)
        # A copy: the optimiser goes on with the tensors that it is given, and we may come back once more.
        learner.restore(on_host(self.learner) | {"optimiser_steps": learner.optimiser_steps})
