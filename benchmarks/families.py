"""Every family of models at a tiny size through the whole of what trains here, held against plain transformers.

    python -m benchmarks.families [--only NAME ...] [--write]

Each is made with random weights, saved as somebody would publish it, prepared, sampled in a batch that replies join and
leave, trained as a preference model, by PPO and by PPO with adapters, and loaded again to be served. Printed as the
table of docs/reference/models.md, which `--write` puts there: what each step came to, how far sampled log-probs lie
from the plain forward's, decoding forwards a step (prompts apart) and tokens per second beside `generate`.

Exits with 1 where a family that the table has fails a step.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from models.chat.format import ChatFormat
from models.jobs import prepare_policy, train_policy, train_preference_model
from models.model_folders.loading import load_causal_lm
from models.model_folders.probe_reply import check_probe_reply
from models.runtime.job import Job
from models.sampling import llama
from models.sampling.engine import DecodeEngine, SamplingParams
from tests.models.marked_words import write_prompts
from tests.models.preference_world import polite_comparisons, write_comparison_set
from tests.models.tiny_folders import CHATML, byte_level_bpe
from tests.paths import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "reference" / "models.md"
COMMAND = "python -m benchmarks.families --write"
SIZE = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROPE_3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
DEEPSEEK = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip
# Name, model type, and what its configuration needs beside the size.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3": ("llama", GROUPED | {"rope_parameters": ROPE_3}),
    "Llama, tied": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "Llama, YaRN": ("llama", GROUPED | {"rope_parameters": YARN}),
    "Mistral": ("mistral", GROUPED | {"sliding_window": None}),
    "Mistral with a window": ("mistral", GROUPED | {"sliding_window": 16}),
    "Ministral": ("ministral", GROUPED | {"head_dim": 16, "sliding_window": 16}),
    "Mixtral": ("mixtral", GROUPED | {"num_local_experts": 4, "sliding_window": None}),
    "Qwen2 and 2.5": ("qwen2", GROUPED),
    "Qwen2-MoE": ("qwen2_moe", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 64}),
    "Qwen3": ("qwen3", GROUPED | {"head_dim": 16}),
    "Qwen3-MoE": ("qwen3_moe", GROUPED | EXPERTS | {"head_dim": 16}),
    "Qwen3.5": ("qwen3_5_text", GROUPED | {"head_dim": 16} | LINEAR),
    "Gemma": ("gemma", GROUPED | {"head_dim": 16}),
    "Gemma 2": ("gemma2", GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "Gemma 3": ("gemma3_text", GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "Phi 2": ("phi", GROUPED),
    "Phi 3": ("phi3", GROUPED | {"sliding_window": None}),
    "OLMo": ("olmo", GROUPED),
    "OLMo 2": ("olmo2", GROUPED),
    "OLMo 3": ("olmo3", GROUPED | {"sliding_window": 16}),
    "SmolLM3": ("smollm3", GROUPED),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "Falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "StableLM": ("stablelm", GROUPED),
    "StarCoder2": ("starcoder2", GROUPED),
    "GLM-4": ("glm4", GROUPED | {"head_dim": 16}),
    "Nemotron": ("nemotron", GROUPED),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK),
    "Cohere": ("cohere", GROUPED),
    "Granite": ("granite", GROUPED),
    "LFM2": ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}),
}
SLOTS = 8
TOLERANCE_NATS = 1e-3
PPO = {
    "iterations": 2,
    "prompts_per_iteration": 8,
    "minibatch_replies": 4,
    "max_reply_tokens": 8,
    "learning_rate": 1e-4,
}


@dataclass
class Row:
    """What a family came to: each step's word, and its figures."""

    name: str
    model_type: str
    steps: dict[str, str] = field(default_factory=dict)
    fast: str = "–"
    apart_nats: float = float("nan")
    forwards: float = float("nan")
    speed: float = float("nan")
    failed: str | None = None

    def line(self) -> str:
        """A row of the table."""
        words = [self.steps.get(step, "–") for step in STEPS]
        figures = [f"{self.apart_nats:.0e}", f"{self.forwards:.2f}", f"{self.speed:.1f}"]
        shown = [figure if figure != "nan" else "–" for figure in figures]
        return " | ".join(["", self.name, f"`{self.model_type}`", self.fast, *words, *shown, ""]).strip()


STEPS = ("prepared", "preference model", "PPO", "PPO with adapters", "served")
HEAD = ("Family", "model type", "decoder", "prepared", "PM", "PPO", "LoRA", "served", "exact to", "forwards", "speed")


def publish(model_type: str, more: dict[str, Any], folder: Path) -> Path:
    """A folder as somebody would publish it: random weights, a tokenizer and a chat template."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZE | more))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Weights of norms start at one or zero, which would hide that they are left out.
            if "norm" in name and parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) - 0.5)
    model.save_pretrained(folder)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(special), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def run_job(job: Any, name: str, out: Path, inputs: dict[str, Path], **settings: Any) -> Path:
    """A job in this process, as a stage would start it; its result."""
    spec = {"job": name, "inputs": {role: str(path) for role, path in inputs.items()}, "settings": settings, "seed": 0}
    out.mkdir(parents=True)
    (out / "spec.json").write_text(json.dumps(spec))
    with contextlib.redirect_stdout(io.StringIO()):
        job.run(Job(spec, out))
    return out / "result"


def measure(name: str, folder: Path, prompts: Path, comparisons: Path) -> Row:
    """All steps of one family; the first that fails ends it."""
    model_type, more = FAMILIES[name]
    row = Row(name, model_type)
    step = "prepared"
    try:
        initial = run_job(prepare_policy, "prepare_policy", folder / "prepared",
                          {"source": publish(model_type, more, folder / "source")})  # fmt: skip
        row.steps[step] = "yes"
        sampled(row, initial)
        step = "preference model"
        scorer = run_job(train_preference_model, "train_preference_model", folder / "pm",
                         {"initial": initial, "comparisons": comparisons}, batch_pairs=8)  # fmt: skip
        row.steps[step] = "yes"
        inputs = {"initial": initial, "preference_model": scorer, "prompts": prompts}
        step = "PPO"
        snapshot = run_job(train_policy, "train_policy", folder / "ppo", inputs, **PPO)
        row.steps[step] = "yes"
        step = "PPO with adapters"
        run_job(train_policy, "train_policy", folder / "lora", inputs, lora_rank=2, **PPO)
        row.steps[step] = "yes"
        step = "served"
        chat = ChatFormat.load(snapshot)
        check_probe_reply(DecodeEngine(load_causal_lm(snapshot), chat.stop_ids), chat, snapshot)
        row.steps[step] = "yes"
    except Exception as error:  # Whatever it is, it is this family's; the others go on.
        row.steps[step] = "no"
        row.failed = f"{step}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        traceback.print_exc(file=sys.stderr)
    return row


@torch.no_grad()
def sampled(row: Row, initial: Path) -> None:
    """Replies of uneven lengths in fewer slots: their log-probs, the forwards of each step, and the rate."""
    model: Any = load_causal_lm(initial)
    row.fast = "by hand" if llama.supports(model) else "generic"
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 500, (4 + 3 * (i % 5),), generator=generator).tolist() for i in range(24)]
    params = [SamplingParams(8 + 5 * (i % 6), seed=i) for i in range(24)]
    completions = DecodeEngine(model, -1, max_slots=SLOTS).generate(prompts, params)
    apart = []
    for completion in completions:
        ids = torch.tensor([[*completion.prompt_ids, *completion.ids]])
        logps = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), -1)
        at = torch.arange(len(completion.prompt_ids) - 1, ids.shape[1] - 1)
        expected = logps[at, torch.tensor(completion.ids)]
        apart.append((expected - torch.tensor(completion.logprobs)).abs().max().item())
    row.apart_nats = max(apart)
    row.forwards = forwards_a_step(model, prompts, params)
    row.speed = speed_over_generate(model)


def forwards_a_step(model: Any, prompts: list[list[int]], params: list[SamplingParams]) -> float:
    """Forwards of one token a row, over the steps in which replies were running."""
    engine = DecodeEngine(model, -1, max_slots=SLOTS)
    decoder: Any = engine._decoder
    if not hasattr(decoder, "_forward"):
        return 1.0  # One row a request in one cache: a step is one forward by the way it is made.
    calls, forward = [0], decoder._forward

    def counted(batch: Any, ids: torch.Tensor) -> torch.Tensor:
        calls[0] += ids.shape[1] == 1
        return forward(batch, ids)

    decoder._forward = counted
    for prompt, each in zip(prompts, params, strict=True):
        engine.submit(prompt, each)
    steps = 0
    while engine.active:
        steps += bool(engine._running)
        engine.step()
    return calls[0] / steps


def speed_over_generate(model: Any, rows: int = 16, tokens: int = 48) -> float:
    """Tokens per second over those of `generate` on equal prompts and lengths; the best of three rounds, in turn."""
    prompts = torch.randint(5, 500, (rows, 16), generator=torch.Generator().manual_seed(2))
    config = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    mask = torch.ones_like(prompts)

    def ours() -> None:
        DecodeEngine(model, -1, max_slots=rows).generate(
            prompts.tolist(), [SamplingParams(tokens, seed=seed) for seed in range(rows)]
        )

    def theirs() -> None:
        model.generate(prompts, attention_mask=mask, generation_config=config)

    seconds: dict[Callable[[], None], float] = {}
    for _ in range(3):
        for way in (ours, theirs):
            started = time.perf_counter()
            way()
            seconds[way] = min(seconds.get(way, float("inf")), time.perf_counter() - started)
    return seconds[theirs] / seconds[ours]


def measured(names: list[str]) -> Iterator[Row]:
    """Each family in a folder of its own, which is gone after it."""
    with tempfile.TemporaryDirectory(prefix="families ") as base:
        prompts = write_prompts(Path(base) / "prompts")
        comparisons = write_comparison_set(Path(base) / "comparisons", polite_comparisons(24, 8))
        for number, name in enumerate(names):
            with tempfile.TemporaryDirectory(dir=base) as folder:
                yield measure(name, Path(folder) / str(number), prompts, comparisons)
            gc.collect()


def page(rows: list[Row]) -> str:
    """docs/reference/models.md."""
    table = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD), *(row.line() for row in rows)]
    return "\n".join([
        "# Models",
        "",
        "Families of models that are prepared, trained and served here, each tried at a tiny size with random weights.",
        f"Written by `{COMMAND}`, one thread of a CPU, float32.",
        "",
        "- **decoder**: by hand (`models/sampling/llama.py`), or generic, through the model's own cache;",
        "- **LoRA**: PPO with adapters; **served**: the snapshot is loaded and says what it said when it was saved;",
        "- **exact to** (nats): how far the log-prob of any sampled token lies from the plain forward's over the whole",
        "  text, in a batch that replies join and leave;",
        "- **forwards**: passes through the model for one token of every running reply, prompts apart;",
        "- **speed**: tokens per second over those of `generate`, on equal prompts and lengths, log-probs of the",
        "  sampled tokens included on both sides. At this size most of a step is overhead.",
        "",
        *table,
        "",
        "Models that also see or hear (Gemma 3 from 4 B on, Mistral 3, LLaVA) are prepared as their language model.",
        "Families without a class with a score in transformers (Cohere, Granite, LFM2) get one on their trunk. What",
        "has no cache of keys and values (Mamba) can't be sampled and is refused when it is prepared.",
        "",
    ])  # fmt: skip


def main() -> int:
    """Measure, print and write; 1 where a family fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PROJECT_ROOT)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    rows = []
    for row in measured(args.only):
        rows.append(row)
        print(row.line() + (f"  {row.failed}" if row.failed else ""), flush=True)
    if args.write:
        PAGE.write_text(page(rows), encoding="utf-8")
    wrong = [row.name for row in rows if row.failed or row.apart_nats > TOLERANCE_NATS]
    if wrong:
        print(f"not as it should be: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
