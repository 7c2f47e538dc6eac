"""The choices that the paper leaves open: each does what it says, starts exactly, and resumes to the same bytes."""

import pytest
import torch

from models.model_folders.loading import load_causal_lm
from models.policy.critic import Critic
from models.policy.learning import PolicyLearner
from models.policy.model import Policy
from models.policy.ppo import adapted_kl_coef, earned
from models.policy.reply_chunks import reply_chunks
from models.policy.settings import PPOSettings
from models.runtime.job import JobError
from tests.folders import contents
from tests.models.ppo_runs import metrics, results

CRITICS = ("shared", "detached", "separate", "preference_model")
ROUNDING = 1e-6


@pytest.mark.parametrize("critic", CRITICS)
def test_while_the_critic_warms_up_the_policy_stays_exactly_as_it_was(train, critic):
    lines = metrics(train(iterations=4, critic=critic, critic_warmup_iterations=2))
    assert [line["objective/kl"] == 0.0 for line in lines] == [True, True, True, False]
    assert [line["val/ratio"] == 1.0 for line in lines] == [True, True, False, False]
    # At first it expects the same everywhere, which explains nothing; then it has learned.
    assert lines[0]["val/explained_variance"] == pytest.approx(0.0, abs=1e-4)
    assert abs(lines[1]["val/explained_variance"]) > 1e-3


def test_a_critic_of_its_own_reads_a_copy_of_its_trunk(policy_dir):
    reference = load_causal_lm(policy_dir).requires_grad_(False)
    before = [parameter.clone() for parameter in reference.parameters()]
    critic = Critic("separate", reference.base_model)
    critic.expect(2.5)
    chunk = reply_chunks([[5, 6, 7], [8]], [[9, 10], [11]], [0, 1], width=2, pad_id=0, chunk_tokens=100)[0]
    states, _ = Policy(reference).states_and_logits(chunk)
    assert critic(chunk, torch.full_like(states, torch.nan)).tolist() == [2.5] * 3  # the policy's states play no part
    with torch.no_grad():
        critic.head.outer.weight.fill_(0.1)
    shared = Critic("shared", reference.base_model)
    shared.head.load_state_dict(critic.head.state_dict())
    assert torch.allclose(critic(chunk, states), shared(chunk, states), atol=ROUNDING)  # at first they see the same
    critic(chunk, states).sum().backward()
    torch.optim.SGD(critic.parameters(), lr=1.0).step()
    assert all(torch.equal(old, new) for old, new in zip(before, reference.parameters(), strict=True))
    assert not torch.allclose(critic(chunk, states), shared(chunk, states), atol=0.01)


def test_only_a_shared_critic_pulls_at_the_policys_states(policy_dir):
    reference = load_causal_lm(policy_dir)
    chunk = reply_chunks([[5, 6, 7]], [[9, 10]], [0], width=2, pad_id=0, chunk_tokens=100)[0]
    pulled = {}
    for kind in CRITICS:
        critic = Critic(kind, reference.base_model)
        with torch.no_grad():
            critic.head.outer.weight.fill_(1.0)
        states = torch.ones(2, critic.head.inner.in_features, requires_grad=True)
        critic(chunk, states).sum().backward()
        pulled[kind] = states.grad is not None and bool((states.grad != 0).any())
    assert pulled == {"shared": True, "detached": False, "separate": False, "preference_model": False}


@pytest.mark.parametrize(
    ("estimator", "placement"),
    [("k3", "per_token"), ("full", "per_token"), ("k1", "per_reply"), ("k3", "loss"), ("full", "loss")],
)
def test_every_kl_estimator_and_placement_starts_exactly(train, estimator, placement):
    lines = metrics(train(kl_estimator=estimator, kl_placement=placement, iterations=2))
    assert lines[0]["objective/kl"] == 0.0 != lines[1]["objective/kl"]
    assert [line["val/ratio_first"] for line in lines] == [1.0, 1.0]


def test_adaptive_coefficient_follows_the_formula_and_is_recorded(train):
    out = train(iterations=5, kl_coef=0.5, kl_target_nats=1.0, kl_horizon_samples=32, prompts_per_iteration=16)
    lines = metrics(out)
    coefficients = [line["kl_coef"] for line in lines] + [results(out)["kl_coef_end"]]
    assert coefficients[:2] == pytest.approx([0.5, 0.45])  # KL 0: cut at -20 %, times 16 / 32
    for line, coefficient, after in zip(lines, coefficients, coefficients[1:], strict=False):
        assert after == pytest.approx(adapted_kl_coef(coefficient, line["objective/kl"], 1.0, 16, 32), rel=ROUNDING)
        reward = line["objective/scores"] - coefficient * line["objective/kl"]
        assert line["objective/rlhf_reward"] == pytest.approx(reward, abs=ROUNDING)
    assert coefficients[-1] > min(coefficients)  # KL went beyond its target
    curve = results(out)["curve"]
    assert [point["kl_coef"] for point in curve] == coefficients[:-1]
    for point, line in zip(curve, lines, strict=True):
        assert (point["entropy"], point["reply_tokens"]) == (line["objective/entropy"], line["reply_tokens"])


def test_results_record_every_setting(train):
    recorded = results(train(iterations=1, critic="separate"))
    assert recorded["settings"].keys() == PPOSettings.__dataclass_fields__.keys()
    assert recorded["settings"]["critic"] == "separate"
    assert recorded["kl_coef_end"] == recorded["settings"]["kl_coef"] == 0.02


def test_results_record_what_no_setting_says(train):
    recorded = results(train("shared", iterations=1))["choices"]
    assert (recorded["betas"], recorded["eps"], recorded["max_gradient_norm"]) == ([0.9, 0.95], 1e-5, 1.0)
    assert recorded["value_head_rate"] == "10 times the learning rate"
    assert recorded["gradients_clipped"] == "policy and critic together"
    own = results(train("separate", iterations=1, critic="separate", whiten_advantages=False))["choices"]
    assert own["gradients_clipped"] == "policy and critic each by itself"
    assert recorded["advantages"] == "over a whole rollout, whitened there"
    assert own["advantages"] == "over a whole rollout"


@pytest.mark.parametrize(
    "settings",
    [
        {"critic": "separate", "critic_warmup_iterations": 1, "kl_target_nats": 1.0, "kl_horizon_samples": 32},
        {"critic": "preference_model", "kl_estimator": "full"},
        {"advantage": "rloo", "samples_per_prompt": 2, "warmup_steps": 12},
    ],
    ids=["own trunk and adaptive", "from the PM and full", "no critic and a warm-up"],
)
def test_interrupted_training_ends_with_the_same_bytes(train, monkeypatch, settings):
    settings = settings | {"iterations": 4, "checkpoint_every": 2}
    whole = train("whole", **settings) / "result"
    learn = PolicyLearner.learn

    def interrupted(self, iteration, *rest):
        if iteration == 3 and self.job.resumed_at_step is None:
            raise KeyboardInterrupt
        return learn(self, iteration, *rest)

    monkeypatch.setattr(PolicyLearner, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("again", **settings)
    assert contents(whole) == contents(train("again", **settings) / "result")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_placement": "loss"}, "gradient is zero on average"),
        ({"critic_warmup_iterations": 3, "iterations": 3}, "3 of 3 iterations"),
        ({"kl_target_nats": 0.0}, "kl_target_nats is 0.0; expected more than 0"),
        ({"kl_target_nats": 1.0, "kl_coef": 0.0}, "kl_coef is 0 with kl_target_nats"),
        ({"kl_horizon_samples": 0}, "kl_horizon_samples is 0"),
        ({"kl_estimator": "k2"}, "k2"),
        ({"critic": "own"}, "own"),
        ({"advantage": "rloo"}, "samples_per_prompt is 1; expected at least 2"),
        ({"samples_per_prompt": 0}, "samples_per_prompt is 0; expected at least 1"),
        *(
            ({"advantage": "rloo", "samples_per_prompt": 2} | about, f"{next(iter(about))} is .* which has no critic")
            for about in (
                {"critic": "separate"},
                {"critic_warmup_iterations": 1, "iterations": 3},
                {"value_clip": 0.2},
                {"discount": 0.9},
            )
        ),
    ],
)
def test_impossible_settings_are_refused(train, settings, message):
    with pytest.raises(JobError, match=message):
        train(**settings)


def test_without_a_critic_nothing_of_one_is_computed_or_kept(train):
    run = train(iterations=2, advantage="rloo", samples_per_prompt=2)
    lines, recorded = metrics(run), results(run)
    assert not {"loss/value_avg", "val/explained_variance"} & set().union(*lines)
    assert "value_head" not in recorded["choices"]
    assert recorded["choices"]["gradients_clipped"] == "of the policy"
    # The replies to one prompt are different ones, and all of them count.
    size = PPOSettings(**recorded["settings"]).prompts_per_iteration
    assert [line["episode"] for line in lines] == [2 * size, 4 * size]
    assert recorded["samples"] == 4 * size


def test_a_reply_that_is_cut_off_earns_less_by_the_penalty_alone(train):
    plain, penalised = train("plain", iterations=2), train("penalised", iterations=2, cut_off_penalty=3.0)
    lines = metrics(penalised)
    # Of untrained replies most are cut off; the first rollout is the same, and what is learned from it is not.
    assert lines[0]["truncated"] == metrics(plain)[0]["truncated"] > 0
    assert lines[0]["objective/scores"] == metrics(plain)[0]["objective/scores"]
    assert lines[1] != metrics(plain)[1]
    for line in lines:
        taken_off = line["kl_coef"] * line["objective/kl"] + 3.0 * line["truncated"]
        assert line["objective/non_score_reward"] == pytest.approx(-taken_off, abs=ROUNDING)
        assert line["objective/rlhf_reward"] == pytest.approx(line["objective/scores"] - taken_off, abs=ROUNDING)


def test_what_a_reply_earns_by_hand():
    found = earned(torch.tensor([1.5, -2.0, 0.0]), [True, False, True], 0.5)
    assert found.tolist() == [1.0, -2.0, -0.5]
