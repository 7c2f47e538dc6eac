"""The decode engine: both decoders against the plain forward, and batches that requests join and leave."""

import math

import numpy as np
import pytest
import torch

from models.runtime import random_numbers
from models.runtime.random_numbers import derive_seed, permutation, uniforms
from models.sampling import key_value_cache
from models.sampling import llama as sampler_llama
from models.sampling.draws import choose_tokens
from models.sampling.engine import DecodeEngine, SamplingParams
from models.sampling.generic import GenericDecoder
from models.sampling.llama import LlamaDecoder
from tests.models.sampling.tiny_models import (
    EOS,
    FAST,
    GENERIC,
    assert_equal_to_plain_forward,
    gemma3,
    llama,
    plain_logps,
    qwen2,
    qwen3,
    some_prompts,
)

ROUNDING = 5e-6  # float32, log-probs down to -30


@pytest.mark.parametrize("name", [*FAST, *GENERIC])
def test_engine_gives_the_log_probs_of_the_plain_forward(name):
    model = (FAST | GENERIC)[name]()
    engine = DecodeEngine(model, EOS, max_slots=5)
    assert isinstance(engine._decoder, LlamaDecoder if name in FAST else GenericDecoder)
    params = [SamplingParams(8 + i, seed=i) for i in range(8)]
    completions = engine.generate(some_prompts(), params)
    assert_equal_to_plain_forward(model, completions)
    assert len({tuple(completion.ids) for completion in completions}) == 8
    for completion, settings in zip(completions, params, strict=True):
        if completion.finished == "stop":
            assert completion.ids.index(EOS) == len(completion.ids) - 1
        else:
            assert len(completion.ids) == settings.max_tokens
            assert EOS not in completion.ids


@pytest.mark.parametrize("name", [name for name in GENERIC if name != "llama with dynamic rotary scaling"])
def test_all_running_requests_are_one_forward_a_step(name, monkeypatch):
    model = GENERIC[name]()
    engine = DecodeEngine(model, eos_id=-1, max_slots=5)
    widths = []
    forward = GenericDecoder._forward

    def counted(decoder, batch, ids):
        widths.append(ids.shape[1])
        return forward(decoder, batch, ids)

    monkeypatch.setattr(GenericDecoder, "_forward", counted)
    prompts = [prompt for prompt in some_prompts() if len(prompt) > 1]
    steps = 0
    for i, prompt in enumerate(prompts):
        engine.submit(prompt, SamplingParams(5 + 3 * i, seed=i))
    while engine.active:
        running = len(engine._running)
        widths.clear()
        engine.step()
        # Prompts apart, which are computed before they join.
        assert widths.count(1) == (1 if running else 0)
        steps += 1
    assert steps > len(prompts)


def test_columns_that_only_ended_replies_needed_are_given_up():
    model = gemma3()
    engine = DecodeEngine(model, eos_id=-1)
    long, short = some_prompts()[6], some_prompts()[0]
    engine.submit(long, SamplingParams(4, seed=0))
    engine.submit(short, SamplingParams(20, seed=1))
    widths = []
    while engine.active:
        engine.step()
        widths += [batch.mask.shape[1] for batch in engine._decoder._batches]
    assert widths[:3] == [len(long) + step for step in range(3)]
    # After the long one's end the short one's own tokens are left.
    assert widths[3] == len(short) + 3
    assert_equal_to_plain_forward(
        model, DecodeEngine(model, eos_id=-1).generate([long, short], [SamplingParams(4), SamplingParams(30)])
    )


@pytest.mark.parametrize("family", [qwen2, qwen3])
@pytest.mark.parametrize("joined", [True, False])
def test_large_models_keep_their_projections_apart(monkeypatch, joined, family):
    if not joined:
        monkeypatch.setattr(sampler_llama, "JOIN_BELOW_PARAMETERS", 0)
    model = family()
    engine = DecodeEngine(model, EOS)
    assert (len(engine._decoder._layers[0].qkv) == 1) == joined
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(4), SamplingParams(8, seed=3)))


@pytest.mark.parametrize("decoder", [LlamaDecoder, GenericDecoder])
def test_requests_join_and_leave_at_any_step(decoder):
    model = llama()
    prompts = some_prompts()

    def fresh_engine():
        engine = DecodeEngine(model, eos_id=-1, max_slots=8)
        engine._decoder = decoder(model)
        return engine

    alone = {}
    for i, prompt in enumerate(prompts):
        alone[i] = fresh_engine().generate([prompt], SamplingParams(6 + i, seed=100 + i))[0].ids

    engine = fresh_engine()
    handles, together, cancelled = {}, {i: [] for i in range(len(prompts))}, 4
    for step in range(60):
        if step % 2 == 0 and step // 2 < len(prompts):  # one newcomer every second step
            i = step // 2
            handles[engine.submit(prompts[i], SamplingParams(6 + i, seed=100 + i))] = i
        if step == 11:
            assert engine.cancel(next(h for h, i in handles.items() if i == cancelled))
        for handle, token_id, logprob, finished in engine.step():
            i = handles[handle]
            together[i].append(token_id)
            assert math.isfinite(logprob)
            assert (finished == "length") == (len(together[i]) == 6 + i)
    assert engine.active == 0
    assert together[cancelled] == alone[cancelled][:3]  # steps 8, 9 and 10
    del together[cancelled], alone[cancelled]
    assert together == alone


def test_every_token_is_drawn_with_the_random_number_of_its_seed_and_place():
    model = llama()
    completion = DecodeEngine(model, eos_id=-1).generate([[5, 6, 7]], SamplingParams(12, seed=9))[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([completion.prompt_ids + completion.ids])).logits[0, 2:-1]
    numbers = uniforms(np.full(12, 9), np.arange(12))
    ids, _ = choose_tokens(logits, torch.from_numpy(numbers), torch.ones(12), torch.ones(12))
    assert completion.ids == ids.tolist()


def test_a_prompt_that_comes_several_times_is_computed_once_and_gives_the_same_replies():
    model = llama()
    first, second = some_prompts(2)
    prompts = [first, second, first, first, second]
    params = [SamplingParams(12, seed=seed) for seed in (1, 2, 3, 1, 2)]
    completions = DecodeEngine(model, eos_id=-1).generate(prompts, params)
    assert_equal_to_plain_forward(model, completions)
    assert completions[0].ids == completions[3].ids != completions[2].ids
    assert completions[1].ids == completions[4].ids


@pytest.mark.parametrize("joined", [True, False])
def test_prompts_run_through_the_layers_in_groups_of_a_few_tokens(monkeypatch, joined):
    monkeypatch.setattr(sampler_llama, "_PREFILL_TOKENS_CPU", 16)
    if not joined:
        monkeypatch.setattr(sampler_llama, "JOIN_BELOW_PARAMETERS", 0)
    model = llama()
    prompts = some_prompts() * 2  # each in one group, its second row too
    engine = DecodeEngine(model, EOS, max_slots=16)
    assert_equal_to_plain_forward(model, engine.generate(prompts, [SamplingParams(6, seed=i) for i in range(16)]))
    # 3 and 4 pad to 8 tokens, with 5 to 15; 20 tokens are a group of their own.
    groups = sampler_llama._groups([3, 4, 5, 7, 7, 20, 16, 9], torch.device("cpu"))
    assert groups == [(0, 3), (3, 5), (5, 6), (6, 7), (7, 8)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompts_join_within_the_tokens_of_a_forward_pass(name):
    model, prompts = (FAST | GENERIC)[name](), some_prompts()  # of 3 to 20 tokens
    params = [SamplingParams(6, seed=i) for i in range(8)]
    usual = DecodeEngine(model, EOS).generate(prompts, params)
    engine = DecodeEngine(model, EOS, forward_tokens=12)
    met, prefill = [], engine._decoder.prefill
    engine._decoder.prefill = lambda joining: met.append([len(prompt) for prompt in joining]) or prefill(joining)
    completions = engine.generate(prompts, params)
    assert_equal_to_plain_forward(model, completions)
    assert [each.ids for each in completions] == [each.ids for each in usual]
    assert sorted(length for lengths in met for length in lengths) == sorted(map(len, prompts))
    assert all(sum(lengths) <= 12 or len(lengths) == 1 for lengths in met)
    assert max(map(len, met)) > 1


def test_cancelled_and_closed_requests_are_gone():
    engine = DecodeEngine(llama(), EOS, max_slots=1)
    running, waiting = (engine.submit([5, 6], SamplingParams(9, seed=s)) for s in (0, 1))
    engine.step()
    assert engine.active == 2
    assert engine.cancel(waiting)
    assert engine.cancel(running)
    assert not engine.cancel(running)
    assert engine.step() == []
    engine.submit([5, 6], SamplingParams(9))
    engine.close()
    assert engine.active == 0


def test_cache_grows_while_replies_run():
    model = llama()
    engine = DecodeEngine(model, eos_id=-1, max_slots=6)
    engine._decoder.reserve(1, 4)
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(6), SamplingParams(30, seed=2)))


def test_changed_weights_count_after_sync():
    model = llama()
    engine = DecodeEngine(model, EOS)
    engine.submit([5], SamplingParams(3))
    engine.step()
    with pytest.raises(RuntimeError, match="1 replies are running"):
        engine.sync()
    engine.close()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.sync()
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(3), SamplingParams(6, seed=1)))


def test_bfloat16_weights_are_decoded_in_bfloat16():
    # bfloat16 has 8 bits of mantissa: log-probs of a few nats agree to about 0.1.
    model = llama(initializer_range=0.05).to(torch.bfloat16)
    completions = DecodeEngine(model, EOS).generate(some_prompts(4), SamplingParams(6, seed=1))
    for completion in completions:
        assert completion.logprobs == pytest.approx(plain_logps(model, completion.prompt_ids, completion.ids), abs=0.15)


def test_a_request_that_does_not_fit_is_refused_when_it_is_submitted():
    engine = DecodeEngine(llama(), EOS)
    with pytest.raises(ValueError, match="60 prompt tokens and a reply of up to 5 need a context of 65"):
        engine.submit([2] * 60, SamplingParams(5))
    with pytest.raises(ValueError, match="no tokens"):
        engine.submit([], SamplingParams(5))


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -0.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"seed": -1}]
)
def test_impossible_sampling_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**({"max_tokens": 4} | wrong))


# Random numbers and the choice of a token


def test_uniform_numbers_depend_on_seed_and_position_alone():
    seeds, positions = np.array([3, 3, 4, 2**63 + 5]), np.array([0, 1, 0, 7])
    together = uniforms(seeds, positions)
    assert len(set(together.tolist())) == 4
    for i in range(4):
        assert uniforms(seeds[i : i + 1], positions[i : i + 1])[0] == together[i]
    # Fixed for ever: a change would silently change every reply that is drawn again.
    assert together.tolist() == [splitmix_uniform(int(s), int(p)) for s, p in zip(seeds, positions, strict=True)]


def splitmix_uniform(seed, position):
    """The definition in whole numbers: two rounds of splitmix64's finaliser, top 24 bits."""
    golden, words = 0x9E3779B97F4A7C15, 2**64

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % words
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % words
        return z ^ (z >> 31)

    return (mix((mix((seed + golden) % words) + golden * (position + 1)) % words) >> 40) / 2**24


def test_mixing_is_that_of_splitmix64():
    # First output of the published generator with seed 1234567: its state after one golden step, mixed.
    first = random_numbers._mix(np.array([1234567], dtype=np.uint64) + random_numbers._GOLDEN)
    assert int(first[0]) == 6457827717110365317


@pytest.mark.parametrize("axis", ["seeds", "positions"])
def test_uniform_numbers_are_uniform_along_both_axes(axis):
    count, zeros = 100_000, np.zeros(100_000, dtype=np.uint64)
    numbers = np.arange(count, dtype=np.uint64)
    drawn = uniforms(numbers, zeros) if axis == "seeds" else uniforms(zeros, numbers)
    counts = np.histogram(drawn, bins=50, range=(0, 1))[0]
    # Chi-square with 49 degrees of freedom: mean 49, standard deviation 9.9; neighbours are uncorrelated.
    assert ((counts - count / 50) ** 2 / (count / 50)).sum() < 49 + 5 * 9.9
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / math.sqrt(count)


def test_derived_seeds_differ_by_every_part_and_their_order():
    assert len({derive_seed(*parts) for parts in [(0,), (1,), (0, 1), (1, 0), (0, 0), (0, 0, 1), (-1,)]}) == 7


def test_permutation_visits_everything_once():
    assert sorted(permutation(5, 1000).tolist()) == list(range(1000))
    assert permutation(5, 1000).tolist() != permutation(6, 1000).tolist()


def draw(probs, uniform, temperature=1.0, top_p=1.0):
    logits = torch.tensor([probs]).log().expand(len(uniform), -1).contiguous()
    count = len(uniform)
    ids, logps = choose_tokens(
        logits, torch.tensor(uniform), torch.full((count,), temperature), torch.full((count,), top_p)
    )
    return ids.tolist(), logps.tolist()


def test_choice_inverts_the_cumulative_distribution():
    # Cumulative: 0.2, 0.2, 0.7, 1.0; token 1 is impossible, and so is token 4.
    ids, logps = draw([0.2, 0.0, 0.5, 0.3, 0.0], [0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24])
    assert ids == [0, 0, 2, 2, 3, 3]
    assert logps == pytest.approx([math.log(p) for p in (0.2, 0.2, 0.5, 0.5, 0.3, 0.3)], abs=1e-5)


def test_the_plain_draw_and_the_one_of_mixed_settings_agree():
    # A row at temperature 2 sends the whole batch through the general way.
    logits = 5 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(1))
    ones, warmer = torch.ones(64), torch.tensor([1.0] * 63 + [2.0])
    ids, logps = choose_tokens(logits, uniform, ones, ones)
    mixed_ids, mixed_logps = choose_tokens(logits, uniform, warmer, ones)
    assert ids[:63].tolist() == mixed_ids[:63].tolist()
    expected = torch.log_softmax(logits.double(), dim=-1).gather(1, ids[:, None])[:, 0]
    assert logps.tolist() == pytest.approx(expected.tolist(), abs=ROUNDING)
    assert mixed_logps[:63].tolist() == pytest.approx(expected[:63].tolist(), abs=ROUNDING)


def test_temperature_sharpens_but_log_probs_stay_the_models():
    # At temperature 0.5 probabilities 0.2, 0.8 become 0.04 / 0.68 = 0.0588 and 0.9412.
    ids, logps = draw([0.2, 0.8], [0.05, 0.07], temperature=0.5)
    assert ids == [0, 1]
    assert logps == pytest.approx([math.log(0.2), math.log(0.8)], abs=1e-5)


def test_temperature_zero_takes_the_likeliest():
    assert draw([0.4, 0.5, 0.1], [0.0, 0.99], temperature=0.0)[0] == [1, 1]


def test_top_p_keeps_the_fewest_tokens_that_reach_the_share():
    # 0.5 + 0.3 reaches 0.75, so that 0.2 can't be drawn; 0.5 / 0.8 = 0.625 of the mass is token 2's.
    ids, _ = draw([0.2, 0.3, 0.5], [0.0, 0.37, 0.38, 0.999], top_p=0.75)
    assert ids == [1, 1, 2, 2]


def test_drawn_tokens_follow_the_models_probabilities():
    # 20,000 draws: each share has a standard error of at most 0.0035.
    probs = [0.1, 0.25, 0.05, 0.6]
    uniform = uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, dtype=np.uint64)).tolist()
    ids, _ = draw(probs, uniform)
    assert (np.bincount(ids, minlength=4) / 20_000).tolist() == pytest.approx(probs, abs=0.015)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cached_keys_in_many_blocks_tell_the_same_as_the_plain_forward(monkeypatch, groups):
    # Blocks of 2, 2, 2, 2, 4, 4, ... positions: replies cross them, rows move between them, and the cache grows twice.
    monkeypatch.setattr(key_value_cache, "_FIRST_BLOCK_CPU", 2)
    model = llama(num_key_value_heads=4 // groups)
    engine = DecodeEngine(model, EOS, max_slots=4)
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(1), SamplingParams(4, seed=9)))
    params = [SamplingParams(6 + 5 * i, seed=i) for i in range(8)]
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(), params))
    sizes = [block.size for block in engine._decoder.cache.blocks]
    assert sizes[:5] == [2, 2, 2, 2, 4]
    assert [block.start for block in engine._decoder.cache.blocks][:6] == [0, 2, 4, 6, 8, 12]
