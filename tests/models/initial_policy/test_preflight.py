"""What the preflight lets pass, and each planted fault that it catches before a week is spent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from models.chat.format import ChatFormat
from models.chat.tokenizer import complete_tokenizer, write_chat_files
from models.initial_policy import preflight
from models.initial_policy.preflight import PreflightError, check_computing, check_endings, check_format
from models.jobs import prepare_policy
from models.runtime.job import Job, JobError
from models.sampling import batch_cache
from models.sampling.llama import LlamaDecoder
from tests.models.chat.families import FAMILIES
from tests.models.model_folders.composite_models import gemma3 as gemma3_that_sees
from tests.models.sampling.tiny_models import SMALL, cohere, gemma3, granite, llama, qwen3_5


def prepared(family: str, folder: Path):
    tokenizer = FAMILIES[family]()
    complete_tokenizer(tokenizer)
    return write_chat_files(tokenizer, folder), tokenizer


@pytest.fixture
def chat(tmp_path: Path) -> ChatFormat:
    return prepared("qwen2", tmp_path / "chat")[0]


def sized(make, chat: ChatFormat, **changes):
    """A tiny model with room for the tokenizer's ids and a short dialogue."""
    model = make(**changes) if changes else make()
    model.resize_token_embeddings(chat.vocab_size, mean_resizing=False)
    model.config.max_position_embeddings = 512
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_asked_in_its_own_format(family: str, tmp_path: Path) -> None:
    doubts = check_format(*prepared(family, tmp_path))
    refuses = [doubt for doubt in doubts if "refuses a system role" in doubt]
    thinks = [doubt for doubt in doubts if "before every reply" in doubt]
    assert bool(refuses) == (family in ("llama2", "unigram", "mistral"))
    assert bool(thinks) == (family == "thinking")
    unknown = [doubt for doubt in doubts if "no token for some characters" in doubt]
    assert bool(unknown) == (family in ("unigram", "mistral"))
    assert len(doubts) == len(refuses) + len(thinks) + len(unknown)


def test_white_space_that_the_model_never_saw_is_an_error_with_both_ids(tmp_path: Path) -> None:
    chat, tokenizer = prepared("phi3", tmp_path)
    chat._takes_blanks_after = set()
    with pytest.raises(
        PreflightError, match=r"roles user has other ids .* at place 1 id \d+ \('Ċ'\) stands for id \d+"
    ):
        check_format(chat, tokenizer)


def test_ids_that_are_missing_at_the_end_are_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, tokenizer = prepared("qwen2", tmp_path)
    encode = chat.encode
    monkeypatch.setattr(chat, "encode", lambda messages, reply=False: encode(messages, reply=reply)[:-1])
    with pytest.raises(PreflightError, match=r"the end stands for id \d+"):
        check_format(chat, tokenizer)


@pytest.mark.parametrize("make", [llama, gemma3, qwen3_5, cohere, granite])
def test_models_that_are_right_pass(make, chat: ChatFormat) -> None:
    assert check_computing(sized(make, chat), chat) == []


def test_angles_that_depend_on_the_length_are_a_doubt(chat: ChatFormat) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = sized(llama, chat, rope_parameters=dynamic, max_position_embeddings=512)
    assert [doubt[:40] for doubt in check_computing(model, chat)] == ["Its rotary angles depend on the length o"]


def test_a_cache_that_cannot_give_up_a_row_is_found_before_ppo(chat: ChatFormat, monkeypatch) -> None:
    def broken(cache, rows):
        raise AttributeError("'LinearAttentionLayer' object has no attribute 'batch_select_indices'")

    monkeypatch.setattr(batch_cache, "take_rows", broken)
    with pytest.raises(PreflightError, match="can't be sampled here: AttributeError: 'LinearAttentionLayer'"):
        check_computing(sized(qwen3_5, chat), chat)


def test_replies_that_are_sampled_by_another_model_are_found(chat: ChatFormat, monkeypatch) -> None:
    step = LlamaDecoder.step

    def shifted(self, ids, positions, *rest):
        return step(self, ids, positions + 1, *rest)

    monkeypatch.setattr(LlamaDecoder, "step", shifted)
    with pytest.raises(PreflightError, match=r"^Its sampled replies differ from the plain forward .* by \d"):
        check_computing(sized(llama, chat), chat)


def test_replies_that_ppo_reads_otherwise_are_found(chat: ChatFormat, monkeypatch) -> None:
    monkeypatch.setattr(preflight.Policy, "states_and_logits", _scaled(preflight.Policy.states_and_logits))
    with pytest.raises(PreflightError, match=r"^Its replies read by PPO differ"):
        check_computing(sized(llama, chat), chat)


def _scaled(read):
    def otherwise(self, chunk):
        states, logits = read(self, chunk)
        return states, logits * 1.1

    return otherwise


def test_pairs_that_a_preference_model_reads_otherwise_are_found(chat: ChatFormat, monkeypatch) -> None:
    states = preflight.states_at_reads
    monkeypatch.setattr(preflight, "states_at_reads", lambda *args: states(*args).flip(0))
    with pytest.raises(PreflightError, match=r"^Its states of two replies that share a beginning differ"):
        check_computing(sized(llama, chat), chat)


def test_a_model_of_several_parts_is_no_policy(chat: ChatFormat) -> None:
    torch.manual_seed(0)
    whole = gemma3_that_sees().eval()
    whole.resize_token_embeddings(chat.vocab_size, mean_resizing=False)
    with pytest.raises(PreflightError, match=r"PPO can't read its replies: AttributeError: .*hidden_size"):
        check_computing(whole, chat)


def test_a_context_without_room_is_said(chat: ChatFormat) -> None:
    model = sized(llama, chat)
    model.config.max_position_embeddings = 20
    [doubt] = check_computing(model, chat)
    assert doubt.startswith("Its context of 20 tokens has no room")
    assert check_endings(model, chat) == []


def test_replies_that_never_end_are_a_doubt(chat: ChatFormat) -> None:
    model = sized(llama, chat)
    with torch.no_grad():
        model.lm_head.weight[list(chat.stop_ids)] = 0
        model.lm_head.weight[list(chat.stop_ids), 0] = -1e4
        model.model.norm.weight.fill_(1)
        model.model.norm.weight[0] = 1e-4
    [doubt] = check_endings(model, chat)
    said = (
        r"[5-8] of 8 of its replies to plain questions do not end by themselves within 128 tokens: at max_reply_tokens"
    )
    assert re.match(said, doubt), doubt
    # Whatever a publisher names as an end counts.
    chat.stop_ids = frozenset(range(chat.vocab_size))
    assert check_endings(model, chat) == []


def test_a_prepared_model_says_what_was_taken_out_and_what_to_doubt(
    qwen2_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    whole = gemma3_that_sees(vocab_size=600, max_position_embeddings=512)
    source = tmp_path / "sees"
    whole.save_pretrained(source)
    for file in qwen2_dir.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            (source / file.name).write_bytes(file.read_bytes())
    prepare_policy.run(Job({"inputs": {"source": str(source)}, "seed": 0}, tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "result" / "results.json").read_text())
    assert results["architecture"] == "Gemma3ForCausalLM"
    assert results["text_part_of"] == "Gemma3ForConditionalGeneration"
    assert any("do not end by themselves" in doubt for doubt in results["doubts"])
    assert " of 8 of its replies" in capfd.readouterr().out
    assert SMALL["hidden_size"] == results_width(tmp_path / "out" / "result")


def results_width(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["hidden_size"])


def test_a_template_that_jinja_cannot_read_is_one_line(qwen2_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    for file in qwen2_dir.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% brake %}{% endfor %}")
    with pytest.raises(JobError, match="chat template"):
        prepare_policy.run(Job({"inputs": {"source": str(source)}, "seed": 0}, tmp_path / "out"))
