"""Decoding in steps of few fixed shapes: against the plain steps, and replayed from a recording as a GPU would.

A CUDA graph repeats the operations that it saw, on the memory where it saw them. `Recording` does that on a CPU: a
step that looked at a number, or read what has been moved since, gives other replies here too.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from models.backbone import adapters
from models.sampling import key_value_cache
from models.sampling import llama as sampler_llama
from models.sampling import static as sampler_static
from models.sampling.engine import DecodeEngine, SamplingParams
from models.sampling.in_place import refreshed
from models.sampling.llama import LlamaDecoder
from models.sampling.static import StaticDecoder, as_it_is, padded_rows, padded_width
from tests.models.sampling.tiny_models import EOS, FAST, assert_equal_to_plain_forward, gpt2, llama, qwen2, some_prompts

# Of logits of up to 20 where sums have more terms, the others zero; they come as float32, which is exact to 2e-6.
ROUNDING = {torch.float64: 2e-6, torch.float32: 2e-5, torch.bfloat16: 0.05}
LOGP_ROUNDING = 2e-5
# What waits for the device, and a tensor made of Python numbers, which would have to be copied there.
NOT_RECORDABLE = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "lift_fresh")


class Recording(TorchDispatchMode):
    """The operations of a step, with the very tensors that they were called on."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split("::")[1].split(".")[0] in NOT_RECORDABLE:
            raise RuntimeError(f"{func.name()} can't be recorded")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        """Tensors that a call gave stand for those that it gives now; all others are where they were."""
        now = {}

        def current(x):
            return now.get(id(x), x)

        for func, args, kwargs, result in self.calls:
            args, kwargs = tree_map(current, (args, kwargs))
            again = tree_leaves(func(*args, **kwargs))
            now.update((id(old), new) for old, new in zip(tree_leaves(result), again, strict=True))


def recorded(step):
    with Recording() as recording:
        step()
    return recording.replay


def static_engine(model, slots=5, record=recorded, dtype=None):
    engine = DecodeEngine(model, EOS, max_slots=slots)
    engine._decoder = engine._static = StaticDecoder(LlamaDecoder(model, dtype), slots, record)
    return engine


def generated(engine, length=8, **settings):
    """Replies of 8 requests of different lengths in 5 slots: rows end, move and are filled again."""
    params = [SamplingParams(length + 3 * i, seed=i, **settings) for i in range(8)]
    return engine.generate(some_prompts(), params)


def assert_same(ours, theirs, tolerance=LOGP_ROUNDING):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.ids, one.finished) == (other.ids, other.finished)
        assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


@pytest.fixture
def small_shapes(monkeypatch):
    """Blocks of 8 and widths from 4 on, so that replies of 30 tokens meet many of both."""
    monkeypatch.setattr(key_value_cache, "_FIRST_BLOCK_CPU", 8)
    monkeypatch.setattr(sampler_static, "_FIRST_WIDTH", 4)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.usefixtures("small_shapes")
def test_replayed_steps_draw_the_replies_of_plain_ones(monkeypatch, name, joined):
    if not joined:
        monkeypatch.setattr(sampler_llama, "JOIN_BELOW_PARAMETERS", 0)
    model = FAST[name]()
    engine = static_engine(model)
    replies = generated(engine)
    assert_same(replies, generated(DecodeEngine(model, EOS, max_slots=5)))
    assert_equal_to_plain_forward(model, replies)
    assert len(engine._static._steps) > 2  # since the cache last grew
    assert len(engine._static._draws) > 1
    # By its own name: as they are, on a CPU.
    assert_same(generated(DecodeEngine(model, EOS, max_slots=5, graphs=True)), replies)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("make", [llama, qwen2])
@pytest.mark.usefixtures("small_shapes")
def test_every_step_gives_the_logits_of_the_plain_step(make, dtype):
    model = make().to(dtype)
    plain, static = LlamaDecoder(model), StaticDecoder(LlamaDecoder(model), 6, recorded)
    generator = torch.Generator().manual_seed(0)
    prompts = some_prompts(9)
    seen = set()

    def both(name, *args):
        ours, theirs = (getattr(decoder, name)(*args) for decoder in (static, plain))
        if name == "drop":
            assert ours == theirs
        else:
            seen.add((name, len(ours)))
            assert torch.allclose(ours, theirs, rtol=0, atol=ROUNDING[dtype])
            assert ours.std() > 0.1
        assert static.inner.lengths.tolist() == plain.lengths.tolist()

    both("prefill", prompts[:5])
    for step in range(24):
        if step == 4:
            both("drop", {1, 3})
        if step in (7, 9):
            both("prefill", [prompts[step - 2]])
        if step == 12:
            both("drop", {0, 4})
        if step == 15:
            both("drop", {0})
        if step == 18:
            both("prefill", prompts[7:9] * 2)
        both("decode", torch.randint(2, 64, (len(plain.lengths),), generator=generator))
    assert {n for name, n in seen if name == "decode"} == {2, 3, 4, 5, 6}


@pytest.mark.usefixtures("small_shapes")
def test_replies_in_bfloat16_are_those_of_plain_steps_within_rounding():
    # The first token comes from the prompt alone, the second from the first step.
    model = llama(initializer_range=0.05)
    params = SamplingParams(2, seed=1)
    ours = static_engine(model, dtype=torch.bfloat16).generate(some_prompts(5), params)
    theirs = DecodeEngine(model, EOS, 5, precision="bfloat16").generate(some_prompts(5), params)
    exact = DecodeEngine(model, EOS, 5).generate(some_prompts(5), params)
    assert_same(ours, theirs, tolerance=0.01)
    assert any(one.logprobs != other.logprobs for one, other in zip(ours, exact, strict=True))


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 0.0}])
def test_other_draws_are_made_from_the_same_logits(settings):
    model = llama()
    engine = static_engine(model)
    assert_same(generated(engine, **settings), generated(DecodeEngine(model, EOS, max_slots=5), **settings))
    assert engine._static._draws == {}


def test_sizes_are_few_and_waste_little():
    rows = (1, 2, 3, 5, 8, 9, 16, 17, 33, 63, 64)
    assert [padded_rows(n, 64) for n in rows] == [1, 2, 4, 8, 8, 16, 16, 24, 40, 64, 64]
    assert [padded_rows(n, 6) for n in (3, 5, 6)] == [4, 6, 6]
    widths = (1, 64, 65, 256, 257, 321, 512, 513, 640, 641, 1024, 1025, 1281, 2049)
    assert [padded_width(n) for n in widths] == [64, 64, 128, 256, 320, 384, 512, 640, 640, 768, 1024, 1280, 1536, 2560]
    assert max(padded_width(n) / n for n in range(257, 5000)) < 1.25
    assert len({padded_width(n) for n in range(1, 4097)}) == 20
    assert len({padded_rows(n, 64) for n in range(1, 65)}) == 11


def test_shapes_are_recorded_once_and_outlive_changed_weights():
    model = llama()
    made = []

    def record(step):
        made.append(step)
        return recorded(step)

    engine = static_engine(model, record=record)
    engine.reserve(64)
    generated(engine)
    first = len(made)
    # One width, 64, and rows 1, 2, 4, 5; a draw for each number of rows.
    assert first <= 8
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.sync()
    replies = generated(engine)
    assert len(made) == first
    assert_equal_to_plain_forward(model, replies)


@pytest.mark.parametrize("how", ["joined copies", "copies in another format", "the model's own", "an adapter"])
def test_new_weights_are_read_by_steps_that_were_recorded_before(monkeypatch, how):
    if how != "joined copies":
        monkeypatch.setattr(sampler_llama, "JOIN_BELOW_PARAMETERS", 0)
    model, dtype = llama(), torch.float64 if how == "copies in another format" else None
    if how == "an adapter":
        model = adapters.add_adapter(adapters.sharing(model), adapters.Lora(3, 6.0), seed=1)
    decoder = StaticDecoder(LlamaDecoder(model, dtype), 2, recorded)

    def logits():
        decoder.drop(set(range(len(decoder.inner.lengths))))
        decoder.prefill([[5, 6, 7], [8]])
        return decoder.decode(torch.tensor([9, 10])).clone()

    before, steps = logits(), dict(decoder._steps)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if how != "an adapter" or "lora" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    decoder.sync()
    after = logits()
    assert decoder._steps == steps
    plain = LlamaDecoder(model, dtype)
    plain.prefill([[5, 6, 7], [8]])
    assert torch.allclose(after, plain.decode(torch.tensor([9, 10])), atol=1e-5)
    assert (after - before).abs().max() > 0.1


def test_only_copies_are_written_to():
    ours, theirs = torch.ones(2), torch.ones(2)
    new, moved = torch.full((2,), 3.0), torch.full((2,), 4.0)
    address = {id(x): x.untyped_storage().data_ptr() for x in (theirs, moved)}
    kept = refreshed((None, [ours, ours.clone()]), (None, [new, torch.zeros(3)]), set(), set())
    assert kept[1][0] is ours
    assert ours.tolist() == [3.0, 3.0]
    assert kept[1][1].tolist() == [0.0, 0.0, 0.0]
    assert refreshed(theirs, new, {address[id(theirs)]}, set()) is new
    assert theirs.tolist() == [1.0, 1.0]
    assert refreshed(ours, moved, set(), {address[id(moved)]}) is moved
    assert refreshed([ours], [moved, new], set(), set()) == [moved, new]


@pytest.mark.parametrize("joined", [True, False])
def test_weights_that_moved_are_recorded_again(monkeypatch, joined):
    if not joined:
        monkeypatch.setattr(sampler_llama, "JOIN_BELOW_PARAMETERS", 0)
    model = llama()
    engine = static_engine(model)
    generated(engine)
    old = [parameter.data for parameter in model.parameters()]
    kept = [each.clone() for each in old]
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1
    engine.sync()
    assert_equal_to_plain_forward(model, generated(engine))
    # They may be somebody's still.
    assert all(torch.equal(now, then) for now, then in zip(old, kept, strict=True))


def test_a_cache_that_moved_is_recorded_again():
    model = llama()
    engine = static_engine(model, slots=8)
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(1), SamplingParams(4, seed=9)))
    steps = dict(engine._static._steps)
    engine.reserve(200)
    assert_equal_to_plain_forward(model, engine.generate(some_prompts(1), SamplingParams(4, seed=9)))
    assert engine._static._steps.keys() == steps.keys()
    assert engine._static._steps != steps


@pytest.mark.parametrize("at", [0, 1, 4])
def test_what_cannot_be_recorded_is_said_once_and_decoded_plainly(capsys, at):
    model, tried = llama(), []

    def record(step):
        tried.append(step)
        if len(tried) > at:
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorded(step)

    engine = static_engine(model, record=record)
    replies = generated(engine)
    assert_same(replies, generated(DecodeEngine(model, EOS, max_slots=5)))
    assert_same(generated(engine), replies)
    assert len(tried) == at + 1
    said = capsys.readouterr().err
    assert said.count("note:") == 1
    assert "could not be recorded as a CUDA graph (RuntimeError: operation not permitted" in said
    assert "goes on without graphs" in said


def test_a_step_that_looks_at_a_number_could_not_be_recorded():
    # The recording itself: what it must find.
    numbers = torch.ones(3)
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        recorded(lambda: numbers.sum().item())
    with pytest.raises(RuntimeError, match="nonzero"):
        recorded(lambda: numbers.nonzero())
    with pytest.raises(RuntimeError, match="lift_fresh"):
        recorded(lambda: numbers.add_(torch.tensor([1.0, 2.0, 3.0])))
    replay = recorded(lambda: numbers.mul_(2).add_(numbers[:1].clone()))
    assert numbers.tolist() == [4.0, 4.0, 4.0]
    replay()
    assert numbers.tolist() == [16.0, 16.0, 16.0]


def test_graphs_are_for_gpus_and_for_models_whose_steps_are_known():
    assert DecodeEngine(llama(), EOS)._static is None
    assert DecodeEngine(llama(), EOS, graphs=False)._static is None
    assert DecodeEngine(gpt2(), EOS, graphs=True)._static is None
    assert DecodeEngine(llama(), EOS, graphs=True)._static._record is as_it_is
