"""Context distillation: the KL over 51 categories by hand, the stored set, and a student that moves to its teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from models.chat.format import ChatFormat, Message
from models.chat.tokenizer import complete_tokenizer, write_chat_files
from models.initial_policy.distillation import (
    DistillationError,
    Manifest,
    Shard,
    Targets,
    distillation_kl,
    lay_out,
    rest_logprob,
    targets_of,
)
from models.jobs import distill_student, make_distillation_set
from models.model_folders.loading import load_causal_lm
from models.runtime.job import Job, JobError
from tests.folders import contents
from tests.models.tiny_folders import LLAMA3, write_llama

ROUNDING = 1e-6
# Logits of another batch shape in float32.
LOGPROB_ROUNDING = 1e-4
PROMPT: list[Message] = [
    {"role": "system", "content": "Please tell me the numbers."},
    {"role": "user", "content": "Hello, how are you today?"},
    {"role": "assistant", "content": "I am fine, thank you."},
]
TEXTS = [
    {"text": f"What is {number} plus four? Three plus four is {number} and ten, one two three."} for number in range(90)
]
DIALOGUES = [
    {
        "messages": [
            {"role": "user", "content": f"hello {n}"},
            {"role": "assistant", "content": f"Paris {n}, thanks."},
        ]
    }
    for n in range(90)
]


def logs(*shares: float) -> torch.Tensor:
    return torch.tensor([[math.log(share) for share in shares]], dtype=torch.float32)


def test_kl_and_its_gradient_by_hand() -> None:
    # Teacher 1/2 on id 2, 1/4 on id 0, 1/4 on the rest. Student 1/4 on each of these two, 3/8 and 1/8 on the others.
    targets = Targets(torch.tensor([[2, 0]]), logs(1 / 2, 1 / 4), logs(1 / 4)[0])
    logits = logs(1 / 4, 3 / 8, 1 / 4, 1 / 8).add_(5).requires_grad_()
    kl = distillation_kl(logits, targets)
    # 1/2·ln(2) + 1/4·ln(1) + 1/4·ln(1/2) = 1/4·ln 2
    assert kl.item() == pytest.approx(math.log(2) / 4, abs=ROUNDING)
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    # q - p on the stored ids: 1/4 - 1/4 on id 0, 1/4 - 1/2 on id 2. On the others q - p_rest·q / q_rest with
    # q_rest = 1/2: 3/8 - 1/4·3/4 = 3/16, and 1/8 - 1/4·1/4 = 1/16.
    assert gradient[0].tolist() == pytest.approx([0, 3 / 16, -1 / 4, 1 / 16], abs=ROUNDING)


def test_how_the_rest_is_shared_out_does_not_count_but_what_it_holds_does() -> None:
    targets = Targets(torch.tensor([[0]]), logs(1 / 2), logs(1 / 2)[0])
    one, other = logs(1 / 4, 1 / 2, 1 / 4), logs(1 / 4, 1 / 8, 5 / 8)
    assert torch.allclose(distillation_kl(one, targets), distillation_kl(other, targets), atol=ROUNDING)
    assert distillation_kl(logs(1 / 2, 1 / 4, 1 / 4), targets).item() == pytest.approx(0, abs=ROUNDING)


def test_a_model_is_at_no_distance_from_itself_and_the_whole_vocabulary_gives_the_whole_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(5, 80, generator=generator) for _ in range(2))
    own = targets_of(teacher)
    assert own.top_ids.shape == (5, 50)
    mass = own.top_logprobs.exp().sum(-1) + own.rest_logprob.exp()
    assert torch.allclose(mass, torch.ones(5), atol=ROUNDING)
    assert torch.allclose(distillation_kl(teacher, own), torch.zeros(5), atol=ROUNDING)
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    exact = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(distillation_kl(student, targets_of(teacher, 80)), exact, atol=1e-5)
    # Fewer categories tell less apart, never more.
    assert (distillation_kl(student, own) <= exact + ROUNDING).all()
    assert (distillation_kl(student, own) > 0).all()


def test_what_is_left_is_not_lost_where_a_model_is_sure() -> None:
    # 1 less the top share is 0 in float32; the log of what is left is ln 2 - 60.
    left = rest_logprob(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([[0]]))
    assert left.item() == pytest.approx(math.log(2) - 60, abs=1e-4)


@pytest.mark.parametrize("name", ["policy_dir", "qwen2_policy_dir"])
def test_the_text_is_the_same_with_and_without_the_prompt(name: str, request: pytest.FixtureRequest) -> None:
    chat = ChatFormat.load(request.getfixturevalue(name))
    messages: list[Message] = [{"role": "user", "content": "What is three plus four?"}]
    laid = lay_out(chat, PROMPT, messages, max_tokens=1000)
    assert laid is not None
    assert laid.student == chat.encode(messages)
    assert laid.teacher == chat.encode([*PROMPT, *messages])
    own = laid.student[laid.first :]
    assert laid.teacher[-len(own) :] == own
    assert "What is three plus four?" in chat.decode(own)
    assert laid.num_targets == len(own) - 1
    short = lay_out(chat, PROMPT, messages, max_tokens=5)
    assert short is not None
    assert short.student == laid.student[: laid.first + 5]
    assert short.teacher == laid.teacher[: len(laid.teacher) - len(own) + 5]
    assert lay_out(chat, PROMPT, messages, max_tokens=1) is None


def test_a_template_that_counts_turns_is_refused(tmp_path: Path) -> None:
    counting = LLAMA3.replace("+ message['content'] | trim", "+ message['content'] | trim + '/' ~ loop.length")
    tokenizer = AutoTokenizer.from_pretrained(write_llama(tmp_path / "source", template=counting))
    complete_tokenizer(tokenizer)
    # The preflight would refuse it too: with the reply that is to come there is one turn more.
    chat = write_chat_files(tokenizer, tmp_path / "chat")
    with pytest.raises(DistillationError, match="otherwise after the prompt"):
        lay_out(chat, PROMPT, [{"role": "user", "content": "What is three?"}], max_tokens=100)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, policy_dir: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("distil")
    (folder / "prompt.json").write_text(json.dumps({"version": "test 1", "messages": PROMPT}))
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*TEXTS, *DIALOGUES]))
    return {"teacher": policy_dir, "prompt": folder, "text": folder}


SET = {"tokens": 3000, "max_tokens": 40, "shard_tokens": 800, "held_out_texts": 20}
STUDENT = {"reference_learning_rate": 3e-3, "learning_rate_multiple": 0.5, "batch_texts": 8, "epochs": 3}


def job_of(name: str, out: Path, inputs: dict[str, Path], settings: dict[str, Any]) -> Job:
    out.mkdir(parents=True, exist_ok=True)
    paths = {role: str(path) for role, path in inputs.items()}
    return Job({"job": name, "inputs": paths, "settings": settings, "seed": 1}, out)


@pytest.fixture(scope="module")
def made(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make_distillation_set.run(job_of("make_distillation_set", out, inputs, SET))
    return out


@pytest.fixture(scope="module")
def trained(made: Path, policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    folders = {"student": policy_dir, "distillation_set": made / "result"}
    distill_student.run(job_of("distill_student", out, folders, STUDENT))
    return out


def test_the_set_holds_what_the_teacher_says_after_the_prompt(made: Path, policy_dir: Path) -> None:
    folder = made / "result"
    manifest, results = Manifest.load(folder), json.loads((folder / "results.json").read_text())
    assert (manifest.prompt_version, manifest.top_k, manifest.held_out) == ("test 1", 50, 20)
    assert len(manifest.shards) >= 3
    # Half of the tokens are plain text, whose texts are longer here.
    assert 0 < results["num_plain"] < results["num_dialogues"]
    chat, model = ChatFormat.load(policy_dir), load_causal_lm(policy_dir)
    shard = Shard.load(folder / "train-00001.safetensors")
    assert len(shard) == manifest.shards[1]
    ids, mask, targets = shard.batch([3, 0], torch.device("cpu"))
    assert int(mask.sum()) == shard.num_targets(3) + shard.num_targets(0) == len(targets.rest_logprob)
    own = ids[0, shard.first[3] : shard.length(3)]
    before = chat.encode(PROMPT)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*before, *own.tolist()]])).logits[0]
    # The prediction after id i of the text stands at len(before) + i; the text's last id predicts nothing.
    expected = targets_of(logits[len(before) : -1])
    assert expected.rest_logprob.shape == (shard.num_targets(3),)
    count = shard.num_targets(3)
    assert torch.allclose(targets.top_logprobs[:count], expected.top_logprobs, atol=LOGPROB_ROUNDING)
    assert torch.allclose(targets.rest_logprob[:count], expected.rest_logprob, atol=LOGPROB_ROUNDING)


def test_a_student_moves_towards_its_prompted_self(trained: Path, policy_dir: Path) -> None:
    results = json.loads((trained / "result" / "results.json").read_text())
    assert results["held_out_kl_after"] < 0.6 * results["held_out_kl_before"]
    curve = results["distillation_curve"]
    assert curve[0] == {"tokens": 0, "held_out_kl_nats": results["held_out_kl_before"], "train_kl_nats": None}
    assert curve[-1]["tokens"] == results["num_tokens"]
    # A text that neither has seen: without the prompt the student is nearer to the prompted teacher than its old self.
    chat, old, new = ChatFormat.load(policy_dir), load_causal_lm(policy_dir), load_causal_lm(trained / "result")
    laid = lay_out(chat, PROMPT, [{"role": "user", "content": "Could you write the capital of seven?"}], 100)
    assert laid is not None
    with torch.no_grad():
        targets = targets_of(old(input_ids=torch.tensor([laid.teacher])).logits[0, -laid.num_targets - 1 : -1])
        alone = torch.tensor([laid.student])
        far, near = (
            distillation_kl(model(input_ids=alone).logits[0, laid.first : -1], targets).mean() for model in (old, new)
        )
    assert near < 0.7 * far
    assert "test 1" in (trained / "result" / "README.md").read_text()


def test_a_student_learns_as_far_in_bfloat16_and_its_curve_is_read_in_float32(
    made: Path, trained: Path, policy_dir: Path, tmp_path: Path
) -> None:
    folders = {"student": policy_dir, "distillation_set": made / "result"}
    distill_student.run(job_of("distill_student", tmp_path, folders, STUDENT | {"precision": "bfloat16"}))
    exact, rounded = (json.loads((out / "result" / "results.json").read_text()) for out in (trained, tmp_path))
    assert rounded["held_out_kl_before"] == exact["held_out_kl_before"]
    assert rounded["held_out_kl_after"] != exact["held_out_kl_after"]
    assert rounded["held_out_kl_after"] == pytest.approx(exact["held_out_kl_after"], rel=0.1)
    weights = load_file(tmp_path / "result" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


class Killed(BaseException):
    """Stands for the end of the process right behind a checkpoint."""


def killed_after(job: Job, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = job.save_checkpoint

    def then_die(at: int, state: dict[str, Any]) -> None:
        save(at, state)
        if at == step:
            raise Killed

    monkeypatch.setattr(job, "save_checkpoint", then_die)


def test_killed_and_started_again_both_jobs_end_with_the_same_bytes(
    made: Path,
    trained: Path,
    inputs: dict[str, Path],
    policy_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {"student": policy_dir, "distillation_set": made / "result"}
    again: tuple[tuple[Callable[[Job], None], str, dict[str, Path], dict[str, Any], int, Path], ...] = (
        (make_distillation_set.run, "make_distillation_set", inputs, SET, 2, made),
        (distill_student.run, "distill_student", folders, STUDENT | {"checkpoint_every": 7}, 14, trained),
    )
    for run, name, given, settings, step, whole in again:
        job = job_of(name, tmp_path / name, given, settings)
        killed_after(job, step, monkeypatch)
        with pytest.raises(Killed):
            run(job)
        second = job_of(name, tmp_path / name, given, settings)
        run(second)
        assert second.resumed_at_step == step
        assert contents(tmp_path / name / "result") == contents(whole / "result"), name
        assert (tmp_path / name / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes(), name


def test_mistakes_are_told_in_a_line(
    inputs: dict[str, Path], made: Path, policy_dir: Path, qwen2_policy_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="the teacher holds 512"):
        make_distillation_set.run(job_of("make_distillation_set", tmp_path / "1", inputs, SET | {"max_tokens": 500}))
    settings = SET | {"held_out_texts": 500}
    with pytest.raises(JobError, match="all of which are held out"):
        make_distillation_set.run(job_of("make_distillation_set", tmp_path / "2", inputs, settings))
    folders = {"student": qwen2_policy_dir, "distillation_set": made / "result"}
    with pytest.raises(JobError, match="another tokenizer"):
        distill_student.run(job_of("distill_student", tmp_path / "3", folders, STUDENT))
    with pytest.raises(JobError, match="is no distillation set"):
        distill_student.run(
            job_of("distill_student", tmp_path / "4", folders | {"distillation_set": policy_dir}, STUDENT)
        )
