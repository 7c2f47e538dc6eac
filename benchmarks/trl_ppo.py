"""TRL's PPO as a worker of benchmarks/ppo_speed.py; runs in an environment of its own and imports nothing of ours.

Argument: a JSON file with folders, sizes and settings. Each line "go" on standard input runs one iteration and is
answered by one JSON line; any other line ends the worker with one more.

TRL 1.12.0 takes one optimiser step per minibatch only if the per-device batch is the whole batch and nothing is
accumulated, and its `bf16` setting does nothing: ACCELERATE_MIXED_PRECISION does.
"""

import gc
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

SPEC = json.loads(Path(sys.argv[1]).read_text())
os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if SPEC["dtype"] == "bfloat16" else "no"
os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
if SPEC["device"] == "cpu":
    os.environ["ACCELERATE_USE_CPU"] = "true"
warnings.simplefilter("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessor,
    TrainerCallback,
    logging,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what TRL prints is no answer
logging.set_verbosity_error()


class Replies(LogitsProcessor):
    """Ends row i after `lengths[i]` tokens, the end-of-turn id included, and no sooner."""

    def __init__(self, lengths: list[int], prompt_tokens: int, eos_id: int) -> None:
        self.lengths, self.prompt_tokens, self.eos_id = torch.tensor(lengths), prompt_tokens, eos_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        due = (self.lengths == input_ids.shape[1] - self.prompt_tokens + 1).nonzero()[:, 0].to(scores.device)
        scores[:, self.eos_id] = float("-inf")
        scores[due] = float("-inf")
        scores[due, self.eos_id] = 0.0
        return scores


def say(**what: float) -> None:
    """One answer."""
    ANSWERS.write(json.dumps(what) + "\n")
    ANSWERS.flush()


def cpu_seconds() -> float:
    """CPU seconds of this process, all threads, user and kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory(name: str) -> int:
    """VmRSS or VmHWM (the highest VmRSS) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


class Paced(TrainerCallback):
    """Reports what an iteration took, and waits until the next one is asked for."""

    def __init__(self) -> None:
        self.began = (0.0, 0.0)

    def on_train_begin(self, *args, **more) -> None:
        self.wait()

    def on_step_end(self, *args, **more) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        cpu_s, wall_s = cpu_seconds() - self.began[0], time.perf_counter() - self.began[1]
        say(cpu_s=cpu_s, wall_s=wall_s)
        self.wait()

    def wait(self) -> None:
        if sys.stdin.readline() != "go\n":
            peak = torch.cuda.max_memory_allocated() if SPEC["device"] == "cuda" else memory("VmHWM") - BEFORE
            say(peak_bytes=peak)
            os._exit(0)
        self.began = (cpu_seconds(), time.perf_counter())


torch.set_num_threads(1)
folder = Path(SPEC["folder"])
tokenizer = AutoTokenizer.from_pretrained(folder / "initial", padding_side="left")
gc.collect()
BEFORE = memory("VmRSS")
policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "initial", dtype=torch.float32) for _ in range(2))
value, reward = (
    AutoModelForSequenceClassification.from_pretrained(folder / "preference_model", dtype=torch.float32, num_labels=1)
    for _ in range(2)
)
prompts = SPEC["prompts"]
replies = Replies(SPEC["reply_tokens"], max(map(len, prompts)), tokenizer.eos_token_id)
plain_generate = policy.generate
policy.generate = lambda **more: plain_generate(**more, logits_processor=[replies])
settings = SPEC["settings"]
config = PPOConfig(
    output_dir=SPEC["out"],
    use_cpu=SPEC["device"] == "cpu",
    per_device_train_batch_size=len(prompts),
    gradient_accumulation_steps=1,
    num_mini_batches=len(prompts) // settings["minibatch_replies"],
    local_rollout_forward_batch_size=len(prompts),
    num_ppo_epochs=settings["epochs"],
    total_episodes=len(prompts) * 10_000,
    learning_rate=settings["learning_rate"],
    kl_coef=settings["kl_coef"],
    response_length=max(SPEC["reply_tokens"]),
    stop_token="eos",
    temperature=1.0,
    num_sample_generations=0,
    gradient_checkpointing=False,
    bf16=SPEC["dtype"] == "bfloat16",
    report_to="none",
    save_strategy="no",
    logging_steps=1,
    disable_tqdm=True,
)
PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=reference,
    reward_model=reward,
    value_model=value,
    train_dataset=Dataset.from_dict({"input_ids": prompts}),
    callbacks=[Paced()],
).train()
