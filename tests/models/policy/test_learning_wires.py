"""The wires on learning, on rollouts whose ratios are known: one strange token passes, a leap of all doesn't."""

from types import SimpleNamespace

import pytest
import torch

from models.policy.critic import Critic
from models.policy.learning import PolicyLearner
from models.policy.model import Policy
from models.policy.reply_chunks import ReplyChunk
from models.policy.rollout import Rollout
from models.policy.settings import PPOSettings, WatchSettings
from models.policy.watch import Watch

REPLIES, WIDTH = 20, 20
TOKENS = REPLIES * WIDTH
RARE_LOGIT = -8.3  # a token of probability 1 / (1 + e^8.3) = 2.5e-4, of two
ROUNDING = 1e-4


class TwoWords(Policy):
    """A policy that says word 0 or word 1 at each of TOKENS places: the logits of word 0, after so many readings."""

    def __init__(self, *logits):
        self.logits = list(logits)
        self.model = torch.nn.Linear(1, 1)
        self.more = lambda weight: 0.0 * weight.sum()

    def states_and_logits(self, chunk):
        first = self.logits.pop(0) if len(self.logits) > 1 else self.logits[0]
        logits = torch.stack([first, torch.zeros(TOKENS)], dim=1) + self.more(self.model.weight)
        return torch.zeros(TOKENS, 4), logits


def learned(*logits, epochs=2, policy=None):
    """What the learner tells of a rollout of word 0 alone whose logits are these from step to step."""
    places = torch.arange(TOKENS)
    chunk = ReplyChunk(places[None], places, torch.zeros(TOKENS, dtype=torch.long), places)
    zeros = torch.zeros(REPLIES, WIDTH)
    old = -torch.nn.functional.softplus(-logits[0]).view(REPLIES, WIDTH)
    rollout = Rollout(
        prompts=[],
        completions=[],
        texts=[],
        scores=torch.linspace(-1.0, 1.0, REPLIES),
        response_mask=torch.ones(REPLIES, WIDTH, dtype=torch.bool),
        logps=old,
        ref_logps=old,
        entropies=zeros,
        values=zeros,
    )
    settings = PPOSettings(epochs=epochs, minibatch_replies=REPLIES, prompts_per_iteration=REPLIES)
    critic = Critic("shared", SimpleNamespace(config=SimpleNamespace(hidden_size=4), device=torch.device("cpu")))
    learner = PolicyLearner(
        SimpleNamespace(device=torch.device("cpu")),
        settings,
        policy or TwoWords(*logits),
        critic,
        SimpleNamespace(chunks=lambda completions, rows, width: [chunk]),
        lambda iteration, epoch, size: iter([list(range(size))]),
    )
    return learner.learn(0, rollout, [[chunk]])


def beyond(numbers, rounds=2, **settings):
    """The reason to stop after so many rounds of learning alike."""
    watch = Watch(WatchSettings(**settings))
    return [watch.learning(numbers, iteration) for iteration in range(rounds)][-1]


def test_one_token_whose_ratio_is_in_the_thousands_stops_nothing():
    """It was sampled at a probability of 2.5e-4 and is said as often as not after one step; no other token moved."""
    before = torch.zeros(TOKENS)
    before[7] = RARE_LOGIT
    numbers = learned(before, torch.zeros(TOKENS))
    # (1 + e^8.3) / 2 = 2,012.4; over two steps the mean ratio is (1 + (399 + 2012.4) / 400) / 2 = 3.514: further from
    # 1 than the bound, though nothing else moved. Half the square of its log 7.607, by 400 tokens and two steps: 0.036.
    assert numbers["val/ratio"] == pytest.approx(3.514, abs=1e-3)
    assert numbers["val/ratio_first"] == pytest.approx(1.0, abs=ROUNDING)
    assert numbers["policy/approxkl_avg"] == pytest.approx(0.0362, abs=ROUNDING)
    # It counts for 5 of 400 tokens.
    assert numbers["watch/ratio_error"] == pytest.approx(5 / TOKENS, abs=ROUNDING)
    assert numbers["watch/clip_fraction"] <= 1 / TOKENS
    assert beyond(numbers, rounds=5) is None


@pytest.mark.parametrize("leap", [1.0, -1.0])
def test_a_leap_of_every_token_stops_whichever_way_it_goes(leap):
    # From log-odds of 0 to 4 a log-prob goes from log 0.5 to log 0.982: 0.675 nats. To -4: 3.325 nats.
    numbers = learned(torch.zeros(TOKENS), torch.full((TOKENS,), 4.0 * leap))
    moved = 0.675 if leap > 0 else 3.325
    assert numbers["watch/ratio_error"] == pytest.approx(moved, abs=1e-3)
    assert (beyond(numbers) is None) == (moved < 1)
    assert f"log-probs moved by {moved:.3g} nats a token" in beyond(numbers, max_ratio_error=0.5)
    # The mean ratio of tokens that all lost their probability can't be further from 1 than 1.
    assert leap > 0 or abs(numbers["val/ratio"] - 1) < 1


def test_the_first_step_thins_nothing_out():
    # Both words' scores are spread evenly, so that the gradient of half of the tokens that rose is clipped.
    up = learned(torch.zeros(TOKENS), torch.full((TOKENS,), 4.0))
    assert up["policy/clipfrac_avg"] == pytest.approx(0.25, abs=0.02)
    assert up["watch/clip_fraction"] == pytest.approx(2 * up["policy/clipfrac_avg"])
    # With one step nothing moved before it was measured.
    assert learned(torch.zeros(TOKENS), epochs=1)["watch/ratio_error"] == 0.0


def test_a_gradient_that_is_not_finite_takes_no_step():
    policy = TwoWords(torch.zeros(TOKENS))
    policy.model.weight.data.zero_()
    # Finite, with a gradient of 0 times infinity.
    policy.more = lambda weight: 0.0 * weight.sqrt().sum()
    assert learned(torch.zeros(TOKENS), policy=policy) is None
    assert policy.model.weight.tolist() == [[0.0]]
