"""The evaluate job: exact zero for identical weights, best of n, intervals, paired gain."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from models.chat.format import ChatFormat
from models.jobs import evaluate
from models.model_folders.loading import load_causal_lm
from models.model_folders.saving import save_model
from models.policy.results import JudgedReply
from models.preference.model import PreferenceModel
from models.runtime.job import Job, JobError
from models.runtime.random_numbers import derive_seed
from models.sampling.engine import DecodeEngine, SamplingParams
from models.statistics.intervals import mean_interval
from tests.models.marked_words import write_prompts, write_scorer

FORWARD_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def scorer_dir(policy_dir, tmp_path_factory):
    return write_scorer(policy_dir, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def prompts_dir(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def other_policy_dir(policy_dir, tmp_path_factory):
    """The initial policy with its head sharpened: every logit times 1.2."""
    model, folder = load_causal_lm(policy_dir), tmp_path_factory.mktemp("other")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.2)
    save_model(model, folder, ChatFormat.load(policy_dir), "")
    return folder


@pytest.fixture
def judge(policy_dir, scorer_dir, prompts_dir, tmp_path):
    """Runs the job in this process: judge(policy=..., **settings) -> (results, records, result directory)."""

    def start(name="run", *, policy=policy_dir, seed=0, watcher=None, **settings):
        inputs = {"policy": policy, "initial": policy_dir, "preference_model": scorer_dir, "prompts": prompts_dir}
        if watcher is not None:
            inputs["watcher"] = watcher
        spec = {
            "inputs": {role: str(path) for role, path in inputs.items()},
            "settings": {"max_reply_tokens": 6} | settings,
            "seed": seed,
            "device": "cpu",
        }
        out = tmp_path / name
        out.mkdir()
        job = Job(spec, out)
        job.prepare_process()
        evaluate.run(job)
        records = [json.loads(line) for line in (out / "result" / "replies.jsonl").read_text().splitlines()]
        return json.loads((out / "result" / "results.json").read_text()), records, out / "result"

    yield start
    torch.use_deterministic_algorithms(False)


def test_identical_weights_have_a_kl_of_exactly_zero(judge):
    results, records, _ = judge()
    assert results["kl_nats"] == 0.0
    assert results["kl_ci"] == [0.0, 0.0]
    assert [record["kl_nats"] for record in records] == [0.0] * 12
    assert results["num_prompts"] == 12
    assert {kind: part["num_prompts"] for kind, part in results["by_kind"].items()} == {"helpful": 8, "harmless": 4}


def test_kl_is_the_sum_of_log_ratios_of_each_reply(judge, policy_dir, other_policy_dir):
    results, records, _ = judge(policy=other_policy_dir, seed=4)
    chat = ChatFormat.load(policy_dir)
    initial, other = load_causal_lm(policy_dir), load_causal_lm(other_policy_dir)
    # The same replies once more, since their text need not spell the ids that were sampled.
    prompts = [chat.encode(record["messages"], reply=True) for record in records]
    params = [SamplingParams(6, seed=derive_seed(4, i, 0)) for i in range(12)]
    for record, reply in zip(records, DecodeEngine(other, chat.eos_id).generate(prompts, params), strict=True):
        assert record["reply"] == chat.decode(reply.ids)
        ids = torch.tensor([reply.prompt_ids + reply.ids])
        with torch.no_grad():
            differences = torch.log_softmax(other(ids).logits, -1) - torch.log_softmax(initial(ids).logits, -1)
        steps = torch.arange(len(reply.prompt_ids) - 1, ids.shape[1] - 1)
        assert record["kl_nats"] == pytest.approx(
            differences[0, steps, torch.tensor(reply.ids)].sum().item(), abs=FORWARD_TOLERANCE
        )
    assert results["kl_nats"] == pytest.approx(sum(record["kl_nats"] for record in records) / 12)
    low, high = results["kl_ci"]
    assert low < results["kl_nats"] < high


def test_scores_are_the_preference_models_scores_of_the_text(judge, scorer_dir):
    results, records, _ = judge()
    expected = PreferenceModel.load(scorer_dir).score(
        [[*record["messages"], {"role": "assistant", "content": record["reply"]}] for record in records]
    )
    assert [record["score"] for record in records] == pytest.approx(expected, abs=FORWARD_TOLERANCE)
    assert results["pm_score"] == pytest.approx(sum(expected) / 12, abs=FORWARD_TOLERANCE)
    helpful = [record["score"] for record in records if record["kind"] == "helpful"]
    assert results["by_kind"]["helpful"]["pm_score"] == pytest.approx(sum(helpful) / 8)


def test_intervals_heed_that_prompts_are_turns_of_dialogues(judge):
    results, records, _ = judge(watcher=None)
    openings = [record["messages"][0]["content"] for record in records]
    numbers = list(dict.fromkeys(openings))
    # Numbered as they appear: the text itself is nowhere but in the messages.
    assert [record["dialogue"] for record in records] == [numbers.index(opening) for opening in openings]
    scores = [record["score"] for record in records]
    assert results["pm_score_ci"] == list(mean_interval(scores, clusters=openings)[1:])

    def reply(number, opening, score):
        messages = [{"role": "user", "content": opening}, *[{"role": "assistant", "content": "…"}] * number]
        return JudgedReply(str(number), "helpful", messages, "r", score, 2 * score, 1, False, 0.0, 0.0, [score] * 2)

    turns = evaluate.in_dialogues([reply(0, "A?", 1.0), reply(1, "a", 2.0), reply(2, "B", 3.0), reply(3, "b", 4.0)])
    assert [turn.dialogue for turn in turns] == [0, 0, 1, 1]
    # 2.5 ± 12.706, as worked out in the test of the interval; KL is twice as large, the best of any k as large.
    part = evaluate.means_by_kind(turns)["helpful"]
    assert part.pm_score_ci == pytest.approx((-10.2062, 15.2062), abs=1e-4)
    assert part.kl_ci == pytest.approx((-20.4124, 30.4124), abs=1e-4)
    assert evaluate.best_of_points(turns, [1, 2])[1].pm_score_ci == pytest.approx(part.pm_score_ci)
    nameless = evaluate.in_dialogues([replace(turn, messages=[], dialogue=None) for turn in turns])
    assert [turn.dialogue for turn in nameless] == [None] * 4


def test_best_of_n_takes_the_best_and_says_how_far_it_went(judge):
    one, ones, _ = judge("one")
    four, fours, _ = judge("four", best_of=4)
    # The first of the four is the reply that stands alone: it has the same random numbers.
    assert all(b["score"] >= a["score"] for a, b in zip(ones, fours, strict=True))
    assert four["pm_score"] > one["pm_score"]
    # log 4 - 3/4; every weight is the initial policy's, so that nothing else adds to it.
    assert four["kl_nats"] == pytest.approx(0.636294, abs=1e-6)
    assert four["best_of"] == 4
    assert four["num_prompts"] == 12


def test_points_of_best_of_k_come_from_the_same_replies(judge):
    plain, _, folder = judge("plain", best_of=4)
    results, records, _ = judge("points", best_of=4, best_of_points=[1, 2, 4])
    points = {point["k"]: point for point in results.pop("best_of_points")}
    # Everything else is as without them.
    assert results == plain
    assert "best_of_points" not in json.loads((folder / "results.json").read_text())
    assert [max(record["scores"]) for record in records] == pytest.approx([r["score"] for r in records], abs=1e-6)
    # k = n is the maximum, and the mean over prompts is what the evaluation says anyway.
    assert points[4]["pm_score"] == pytest.approx(plain["pm_score"], abs=1e-9)
    assert points[4]["pm_score_ci"] == pytest.approx(plain["pm_score_ci"], abs=1e-9)
    # k = 1 is the mean of all four, k = 2 the mean over the six pairs of the four.
    mean = sum(sum(record["scores"]) / 4 for record in records) / 12
    assert points[1]["pm_score"] == pytest.approx(mean, abs=1e-9)
    pairs = sum(max(pair) for record in records for pair in itertools.combinations(record["scores"], 2)) / 6 / 12
    assert points[2]["pm_score"] == pytest.approx(pairs, abs=1e-9)
    # log k - (k - 1) / k
    assert [points[k]["kl_nats"] for k in (1, 2, 4)] == pytest.approx([0.0, 0.193147, 0.636294], abs=1e-6)


def test_more_points_than_replies_are_refused(judge):
    with pytest.raises(JobError, match="best_of_points asks for the best of 8; expected 1 to best_of = 4"):
        judge("a", best_of=4, best_of_points=[1, 8])


def test_same_spec_gives_the_same_bytes_and_another_seed_other_replies(judge):
    _, records, first = judge("first")
    _, _, second = judge("second")
    _, others, _ = judge("third", seed=1)
    assert (first / "replies.jsonl").read_bytes() == (second / "replies.jsonl").read_bytes()
    assert (first / "results.json").read_bytes() == (second / "results.json").read_bytes()
    assert [r["reply"] for r in records] != [r["reply"] for r in others]
    assert [r["prompt_id"] for r in records] == [r["prompt_id"] for r in others]


def test_batches_change_neither_prompts_nor_random_numbers(judge, monkeypatch):
    _, together, _ = judge("together")
    monkeypatch.setattr(evaluate, "BATCH_REPLIES", 5)
    _, apart, _ = judge("apart")
    assert [record["reply"] for record in together] == [record["reply"] for record in apart]


def test_fewer_tokens_at_once_change_no_number_but_for_rounding(judge):
    _, together, _ = judge("together", forward_tokens=512)
    _, apart, _ = judge("apart", forward_tokens=16)
    assert [record["reply"] for record in apart] == [record["reply"] for record in together]
    for name in ("score", "kl_nats", "entropy"):
        assert [record[name] for record in apart] == pytest.approx([record[name] for record in together], abs=1e-4)
    assert apart != together, "nothing was cut"


def test_all_is_computed_in_the_format_that_is_named(judge, policy_dir, tmp_path, monkeypatch):
    _, exact, _ = judge("exact")
    watcher = write_scorer(policy_dir, tmp_path / "watcher")
    with monkeypatch.context() as patch:
        models, judged = [], evaluate.judge
        patch.setattr(evaluate, "judge", lambda *args: models.append((args[0], args[-1])) or judged(*args))
        _, records, _ = judge("rounded", precision="bfloat16", watcher=watcher)
    ((collector, watched),) = models
    assert [collector.policy.precision, collector.reference.precision] == ["bfloat16"] * 2
    assert [collector.preference_model.precision, watched.precision] == ["bfloat16"] * 2
    assert collector.engine._decoder.dtype == torch.bfloat16
    # Equal policies are read alike in any format, and two of one preference model's weights score alike.
    assert {record["kl_nats"] for record in records} == {0.0}
    assert [record["score"] for record in records] == [record["watcher_score"] for record in records]
    assert [record["entropy"] for record in records] != [record["entropy"] for record in exact]


def test_truncation_and_length_are_reported(judge):
    results, records, _ = judge(max_reply_tokens=1)
    assert results["reply_tokens"] == 1.0
    assert results["truncated"] == sum(record["truncated"] for record in records) / 12


def test_unknown_settings_and_impossible_numbers_are_refused(judge):
    with pytest.raises(JobError, match="Unknown setting 'prompts'"):
        judge("a", prompts=3)
    with pytest.raises(JobError, match="best_of is 0"):
        judge("b", best_of=0)


def test_a_watcher_scores_the_same_replies(judge, policy_dir, tmp_path):
    watcher = write_scorer(policy_dir, tmp_path / "opposite", sign=-1.0)
    before, first, _ = judge("before", watcher=watcher)
    assert before["watcher_score"] == pytest.approx(-before["pm_score"], abs=FORWARD_TOLERANCE)
    assert [record["watcher_score"] for record in first] == pytest.approx(
        [-record["score"] for record in first], abs=FORWARD_TOLERANCE
    )
    # Without a watcher nothing is said of one.
    alone, records, _ = judge("alone")
    assert not {"watcher_score", "watcher_score_ci"} & alone.keys()
    assert all("watcher_score" not in record for record in records)


def test_collapse_is_told_for_all_and_for_each_kind(judge):
    results, records, _ = judge()
    replies = [record["reply"] for record in records]
    assert results["collapse"]["duplicates"] == 1 - len({" ".join(r.casefold().split()) for r in replies}) / 12
    assert 0 < results["collapse"]["distinct_1"] <= 1
    assert results["by_kind"]["helpful"]["collapse"]["refusals"] == 0.0
