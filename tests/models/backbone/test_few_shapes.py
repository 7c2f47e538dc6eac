"""Batches filled up to few shapes, as on a GPU: nothing that is computed from them changes."""

import random

import pytest
import torch

from models.backbone import precision
from models.backbone.batches import chunk_cost, right_padded
from models.backbone.precision import EXACT, eighths, filling
from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.policy.critic import Critic
from models.policy.model import Policy, selected_logps
from models.policy.reply_chunks import reply_chunks
from models.preference import model as preference
from models.preference.loss import preference_loss
from models.preference.model import PreferenceModel, pair_scores
from tests.models.ppo_runs import metrics
from tests.models.preference.tree_world import BATCH, PAD, small_model

ROUNDING = 1e-5
GRADIENT_ROUNDING = 1e-4  # of the largest
CPU = torch.device("cpu")


@pytest.fixture
def few(monkeypatch):
    """Turns it on for the CPU: few(True)."""

    def choose(on):
        monkeypatch.setattr(precision, "FEW_SHAPES", ("cuda", "cpu") if on else ("cuda",))
        return filling("float32", CPU)

    return choose


def test_eight_sizes_between_powers_of_two():
    assert [eighths(n) for n in (1, 7, 8, 9, 16, 17, 31, 33, 63, 64)] == [1, 7, 8, 9, 16, 18, 32, 36, 64, 64]
    assert [eighths(n, 16) for n in (1, 16, 17, 129, 257, 513, 577, 1025)] == [16, 16, 32, 144, 288, 576, 640, 1152]
    assert max(eighths(n, 16) / n for n in range(128, 5000)) < 1.125
    for power in (64, 256, 2048):
        assert eighths(power, 16) == power
        assert len({eighths(n) for n in range(power + 1, 2 * power + 1)}) == 8


def test_batches_are_filled_up_within_the_tokens_that_are_allowed(few):
    fill = few(True)
    ids, ends = right_padded([[7] * 40, [8] * 3] * 9, PAD, CPU, fill)
    assert ids.shape == (18, 48)
    assert ends.tolist() == [39, 2] * 9
    assert ids.ne(PAD).sum() == 9 * 43
    seventeen = [[7] * 40] * 17
    assert right_padded(seventeen, PAD, CPU, fill)[0].shape == (18, 48)
    assert right_padded(seventeen, PAD, CPU, fill, max_tokens=17 * 48)[0].shape == (17, 48)
    assert right_padded(seventeen, PAD, CPU, fill, max_tokens=100)[0].shape == (17, 48)
    assert right_padded(seventeen, PAD, CPU)[0].shape == (17, 40)
    assert few(False) == EXACT


def test_a_chunk_costs_what_its_launches_take():
    assert chunk_cost("cpu", 32, 6_600_000_000) == 64
    # 32 layers · 98 · 5 µs = 15.68 ms, in which 6.272e12 operations; 6 · 6.6e9 a token: 158.4 tokens.
    assert chunk_cost("cuda", 32, 6_600_000_000) == 158
    # 24 layers: 4.704e12 operations, 6 · 0.5e9 a token: 1,568 tokens.
    assert chunk_cost("cuda", 24, 500_000_000) == 1568


def texts(count, seed=0):
    draw = random.Random(seed)
    prompts = [[draw.randrange(2, 500) for _ in range(draw.randrange(1, 50))] for _ in range(count)]
    return prompts, [[draw.randrange(2, 500) for _ in range(draw.randrange(1, 40))] for _ in range(count)]


@pytest.mark.parametrize("hand", [True, False])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_readings_losses_and_gradients_are_those_of_exact_batches(policy_dir, few, kind, hand):
    found = []
    prompts, replies = texts(17)
    for on in (False, True):
        fill = few(on)
        model = load_causal_lm(policy_dir)
        policy, critic = Policy(model), Critic(kind, load_causal_lm(policy_dir).base_model)
        policy.by_hand = hand
        with torch.no_grad():
            critic.head.outer.weight.fill_(0.1)
        chunks = reply_chunks(prompts, replies, range(17), width=40, pad_id=0, chunk_tokens=2000, fill=fill)
        filled = [chunk.ids.shape for chunk in chunks]
        reading = policy.read(chunks, (17, 40), critic)
        for chunk in chunks:
            states, logits = policy.states_and_logits(chunk)
            assert len(logits) == len(chunk.targets)
            logps, _ = selected_logps(logits, chunk.targets)
            ((logps**2).sum() + critic(chunk, states).sum()).backward()
        parameters = [*model.parameters(), *critic.parameters()]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        found.append((filled, torch.stack([reading.logps, reading.entropies, reading.values]), gradient))
    (exact_shapes, exact, exact_gradient), (shapes, filled, gradient) = found
    assert len(shapes) == len(exact_shapes)
    assert shapes != exact_shapes
    assert all(eighths(width, 16) == width and eighths(rows) == rows for rows, width in shapes)
    assert exact.abs().sum() > 1
    assert torch.allclose(filled, exact, rtol=0, atol=ROUNDING)
    assert (gradient - exact_gradient).abs().max() < GRADIENT_ROUNDING * exact_gradient.abs().max()


def test_scores_of_preference_models_are_those_of_exact_batches(scorer_dir, policy_dir, few, monkeypatch):
    shapes, plain = [], preference.states_at

    def states_at(trunk, ids, positions):
        shapes.append(tuple(ids.shape))
        return plain(trunk, ids, positions)

    monkeypatch.setattr(preference, "states_at", states_at)
    chat = ChatFormat.load(policy_dir)
    draw = random.Random(0)
    sequences = [[*(draw.randrange(2, 500) for _ in range(39)), chat.score_id] for _ in range(17)]
    found = []
    for on in (False, True):
        few(on)
        shapes.clear()
        model = PreferenceModel.load(scorer_dir)
        model.chunk_tokens = 17 * 48
        found.append(torch.tensor(model.score_sequences(sequences)))
    # 17 rows would be filled up to 18, which is more than are allowed.
    assert shapes == [(17, 48)]
    assert torch.allclose(*found, rtol=0, atol=ROUNDING)
    assert found[0].std() > 0.01


def test_losses_of_preference_models_are_those_of_exact_batches(few):
    found = []
    for on in (False, True):
        few(on)
        model, shapes = small_model("llama"), []
        model.base_model.register_forward_pre_hook(
            lambda _, args, given, shapes=shapes: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        loss = preference_loss(*pair_scores(model, BATCH, PAD, CPU))
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        assert (eighths(shapes[0][1], 16) == shapes[0][1]) == on
    (loss, gradient), (filled_loss, filled_gradient) = found
    assert filled_loss == pytest.approx(loss, abs=ROUNDING)
    assert (gradient - filled_gradient).abs().max() < GRADIENT_ROUNDING * gradient.abs().max()


def test_ppo_learns_the_same(train, few, monkeypatch):
    runs, shapes, plain = [], [], Policy.states_and_logits

    def states_and_logits(self, chunk):
        shapes.append(tuple(chunk.ids.shape))
        return plain(self, chunk)

    monkeypatch.setattr(Policy, "states_and_logits", states_and_logits)
    for on in (False, True):
        few(on)
        shapes.clear()
        runs.append(metrics(train("few" if on else "exact", iterations=3, prompts_per_iteration=17)))
    assert all(eighths(width, 16) == width and eighths(rows) == rows for rows, width in shapes)
    for exact, filled in zip(*runs, strict=True):
        assert (filled["objective/kl"], filled["val/ratio_first"]) == pytest.approx(
            (exact["objective/kl"], exact["val/ratio_first"]), abs=1e-3
        )
        assert filled["loss/policy_avg"] == pytest.approx(exact["loss/policy_avg"], abs=1e-3)
        assert filled["gradient_norm"] == pytest.approx(exact["gradient_norm"], rel=1e-2)
    # The old log-probs are read in the layout in which the first epoch reads them.
    assert [line["val/ratio_first"] for line in runs[1]] == [1.0, 1.0, 1.0]
    assert runs[1][0]["objective/kl"] == 0.0


def test_minibatches_of_any_lengths_meet_few_shapes(few):
    # 40 minibatches of 32 replies; prompts and replies of up to 50 and 40 tokens.
    shapes, tokens = {}, {}
    for on in (False, True):
        fill = few(on)
        met = []
        for seed in range(40):
            prompts, replies = texts(32, seed)
            met += reply_chunks(prompts, replies, range(32), width=40, pad_id=0, chunk_tokens=1024, fill=fill)
        shapes[on] = len({tuple(chunk.ids.shape) for chunk in met})
        tokens[on] = sum(chunk.ids.numel() for chunk in met)
    assert shapes[False] > 3 * shapes[True]
    assert tokens[True] < 1.25 * tokens[False]  # texts of 50 tokens: 16 are much of them
