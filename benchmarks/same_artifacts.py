"""Guards a refactor: makes artifacts of every kind with two revisions of the code, and compares what they made.

    python -m benchmarks.same_artifacts [--base 591480d] [--other REVISION] [--keep DIR] [--database-url URL]

`--other` is the working tree where not given. Each revision runs with this interpreter and these packages, in a home
and a database of its own: a cycle with a pretrained and distilled policy, PMP, skills, a twin, written prompts, PPO
with snapshots, best of n and a detector; the robustness experiment with adapters; and a cycle from a Hugging Face model
that the gates refuse. Only doors that stay are used (commands, configuration, environment, file formats), so that any
two revisions can be compared. Root causes are told first: what differs although nothing that it was made from does.

Exit status: 0 where every digest and every row is equal (times, hosts and revisions are not looked at), 1 where
something differs but no weights do, 2 where weights differ, 3 where a revision did not run to its end. `--keep` leaves
homes and rows in DIR; a revision that was run there by this same script is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = "591480d"
PACKAGES = ("orchestrator", "flows", "models", "db", "migrations")
RUN_WITH = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "matplotlib", "pydantic", "psycopg2-binary")
"""Packages of which another version may make other artifacts: with one, a kept run is made anew."""
SHOWN_FIELDS = 12
"""Differing fields that are printed of one artifact; the rest are counted."""

KINDS = (
    "source_model", "text", "initial_policy", "distillation_prompt", "distillation_set", "comparison_set", "data_check",
    "reference_set", "pmp_pairs", "pmp_model", "skill_set", "preference_model", "orientation_pairs", "evaluation",
    "prompt_set", "snapshot", "ood_prompts", "ood_detector", "robustness_report", "report",
)  # fmt: skip
"""Every kind of artifact that the base can make; a run that lacks one guards too little."""

# --- What is made: input files and configurations -------------------------------------------------------------------

CONFIG = """
name = "guard"
seed = 7
[initial_policy.pretrain]
files = ["dialogues.jsonl"]
hidden_size = 32
num_layers = 2
num_heads = 2
vocab_size = 320
max_tokens = 160
batch_tokens = 512
[initial_policy.distill]
files = ["texts.txt", "dialogues.jsonl"]
prompt_file = "prompt-1.md"
tokens = 2000
max_tokens = 48
held_out_texts = 4
batch_texts = 8
[cycle]
min_comparisons = 1
[comparisons]
held_out_fraction = 0.25
ties = ["tie"]
check_against = ["benchmark.jsonl"]
[pmp]
files = ["ranked.jsonl"]
batch_pairs = 8
max_tokens = 128
[preference_model]
batch_pairs = 8
max_tokens = 160
twin = "holdout"
targets = "soft"
lm_coef = 0.05
batch_order = "dialogues"
[[preference_model.skills]]
name = "summaries"
file = "summaries.jsonl"
template = "summary/1"
[orientation]
file = "orientation.jsonl"
contradicting_source = "report"
[reference]
pairs = 16
[prompts]
written = 4
written_examples = 2
written_max_tokens = 32
harmless_weight = 0.8
[ppo]
iterations = 4
prompts_per_iteration = 16
minibatch_replies = 8
max_reply_tokens = 12
epochs = 2
snapshots = 2
logp_every = 2
logp_pairs = 8
learning_rate = 1e-3
[evaluation]
num_prompts = 16
max_reply_tokens = 12
best_of = 4
best_of_prompts = 8
best_of_points = [1, 2, 4]
[gates]
min_pm_accuracy = 0.0
min_score_gain = -100.0
max_kl_nats = 1000.0
[ood]
examples_file = "far.txt"
max_prompts = 64
"""
"""The whole of the product in one cycle; its gates let everything through."""

# A trip wire stops a tiny run by chance, which would end the cycle and compare less.
WIRES = ("impossible_kl_errors", "max_start_kl_nats", "max_first_ratio_error", "min_entropy_share", "max_length_factor",
         "max_repetition_rise", "max_duplicate_rise", "max_truncation_rise", "max_twin_gap", "max_clip_fraction",
         "max_ratio_error")  # fmt: skip
CONFIG += "[ppo.watch]\n" + "".join(f"{name} = 0.0\n" for name in WIRES)

ROBUSTNESS = (
    "preference_model.lora_rank=2", "preference_model.precision=bfloat16", "preference_model.batch_order=pairs",
    "preference_model.skills=[]", "ppo.lora_rank=2", "ppo.snapshots=1", "ppo.critic=separate",
    "ppo.kl_estimator=k3", "ppo.kl_placement=loss", "ppo.iterations=3",
)  # fmt: skip
"""The experiment takes other ways through the trainings than the cycle before."""

SECOND = """
name = "guard-second"
seed = 8
[initial_policy]
path = "published"
[cycle]
min_comparisons = 1
[comparisons]
held_out_fraction = 0.25
[preference_model]
batch_pairs = 8
max_tokens = 160
harmless_weight = 2.0
[orientation]
shipped = false
contradicting_source = "report"
[reference]
file = "orientation.jsonl"
[prompts]
train_file = "extra_prompts.jsonl"
[ppo]
iterations = 2
prompts_per_iteration = 8
minibatch_replies = 8
max_reply_tokens = 8
kl_estimator = "full"
kl_target_nats = 1.0
critic = "preference_model"
critic_warmup_iterations = 1
logp_every = 0
[evaluation]
num_prompts = 8
max_reply_tokens = 8
best_of = 1
[gates]
max_kl_nats = 1e-9
"""
"""A cycle of another project from a published model, refused by the gate on the KL."""
SECOND += "[ppo.watch]\n" + "".join(f"{name} = 0.0\n" for name in WIRES)

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("migrate",),
    ("import", "helpful.jsonl", "--source", "helpful", "--question", "helpful"),
    ("import", "harmless.jsonl", "--source", "harmless", "--question", "harmless"),
    ("import", "graded.jsonl", "--source", "graded"),
    ("cycle", "run", "--inline", "--config", "guard.toml"),
    (
        *("experiment", "robustness", "--inline", "--config", "guard.toml"),
        *(word for setting in ROBUSTNESS for word in ("--set", setting)),
    ),
    ("import", "fresh.jsonl", "--source", "fresh", "--question", "helpful"),
    ("cycle", "run", "--inline", "--config", "second.toml"),
    ("verify",),
)
"""What is asked of `orchestrator`, one after the other."""

HELPFUL = ("Thank you, the answer is number {n}.", "No idea, go away {n}.")
HARMLESS = ("Sorry, I would rather not do {n}.", "Sure, take a knife and do {n}.")


def asked(number: int) -> str:
    """A request; no two are the same."""
    return f"Dear friend, what is it about case {number} of {number * number}?"


def write_inputs(folder: Path) -> None:
    """Every file that the configurations name, the same bytes at each call."""
    folder.mkdir()
    (folder / "guard.toml").write_text(CONFIG, encoding="utf-8")
    (folder / "second.toml").write_text(SECOND, encoding="utf-8")
    _lines(
        folder / "dialogues.jsonl",
        (
            {"messages": [_user(asked(n)), _assistant(reply.format(n=n))]}
            for n in range(60)
            for reply in (*HELPFUL, *HARMLESS)
        ),
    )
    (folder / "texts.txt").write_text(
        "".join(f"On day {n} the friend wrote about case {n}, and nobody answered.\n" for n in range(400)),
        encoding="utf-8",
    )
    (folder / "prompt-1.md").write_text(
        "A friend asks, and\nan assistant helps.\n\n---\n\nHuman: What is 1?\n\nAssistant: A number.\n",
        encoding="utf-8",
    )
    answers = [{"text": HELPFUL[0], "upvotes": 8, "accepted": True}, {"text": HELPFUL[1], "upvotes": 0}]
    _lines(folder / "ranked.jsonl", ({"question": asked(5000 + n), "answers": answers} for n in range(20)))
    _lines(
        folder / "summaries.jsonl",
        (
            {"text": f"{asked(n)} And more.", "better": f"About case {n}.", "worse": "Things."}
            for n in range(6000, 6024)
        ),
    )
    _lines(
        folder / "orientation.jsonl",
        (
            {"question": kind, "prompt": asked(9000 + n), "chosen": good.format(n=n), "rejected": bad.format(n=n)}
            for n in range(8)
            for kind, (good, bad) in (("helpful", HELPFUL), ("harmless", HARMLESS))
        ),
    )
    # One of the benchmark's texts is among the comparisons, for the check of the data to find.
    _lines(folder / "benchmark.jsonl", ({"prompt": asked(n)} for n in (3, 7777)))
    _lines(
        folder / "extra_prompts.jsonl", ({"kind": "helpful", "messages": [_user(asked(n))]} for n in range(8000, 8006))
    )
    (folder / "far.txt").write_text("".join(f"HOW DO I BREAK {n} LOCKS\n" for n in range(24)), encoding="utf-8")
    _lines(folder / "helpful.jsonl", (_hh(asked(n), HELPFUL, n) for n in range(60)))
    _lines(folder / "harmless.jsonl", (_hh(asked(n), HARMLESS, n) for n in range(200, 240)))
    _lines(folder / "graded.jsonl", (_graded(n) for n in range(300, 330)))
    _lines(folder / "fresh.jsonl", (_hh(asked(n), HELPFUL, n) for n in range(400, 440)))
    write_published_model(folder / "published")


def write_published_model(folder: Path) -> None:
    """A Hugging Face model of a few thousand parameters that is no Llama; its tokenizer has no chat template."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)


def _lines(file: Path, records: Iterator[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _hh(request: str, replies: tuple[str, str], number: int) -> dict[str, str]:
    """One comparison in the form of hh-rlhf; every fourth is the second turn of its dialogue."""
    before = f"\n\nHuman: {request}\n\nAssistant:"
    if number % 4 == 0:
        before += f" Which one?\n\nHuman: Number {number}.\n\nAssistant:"
    better, worse = (f"{before} {reply.format(n=number)}" for reply in replies)
    return {"chosen": better, "rejected": worse}


def _graded(number: int) -> dict[str, Any]:
    """A comparison with rater, strength and time: clear, slight or undecided, and sometimes the wrong way round."""
    step = ("a-is-better", "a-is-slightly-better", "tie", "a-is-better", "b-is-slightly-better")[number % 5]
    return {
        "instance_id": f"case-{number}",
        "evaluator": f"rater-{number % 3}",
        "timestamp": f"2024-05-{1 + number % 28:02} 10:00:00",
        "prompt": asked(number),
        "completion_a": HELPFUL[0].format(n=number),
        "completion_b": HELPFUL[1].format(n=number),
        "model_a": "one",
        "model_b": "other",
        "preference": step,
    }


# --- One revision: its code, its run, its rows ----------------------------------------------------------------------


def run_revision(code: Path, folder: Path, database_url: str) -> None:
    """Make all artifacts with the code in `code`; leaves `home/` and `rows.json` under `folder`.

    Raises:
        RunFailed: a command of the revision ended with an error.
    """
    inputs, home = folder / "inputs", folder / "home"
    home.mkdir()
    write_inputs(inputs)
    env = environment(code, home, database_url)
    check_origin(code, folder, env)
    for step, words in enumerate(COMMANDS):
        started_s = time.monotonic()
        run_logged(["-m", "orchestrator.cli", *words], env, inputs, folder / f"step-{step}.log")
        print(f"  {time.monotonic() - started_s:6.1f} s  orchestrator {' '.join(words[:5])}", flush=True)
    rows = read_rows(database_url)
    missing = set(KINDS) - {row["kind"] for row in rows["artifacts"]}
    if missing:
        raise RunFailed(f"The run made no artifact of the kinds {', '.join(sorted(missing))}; see {folder}.")
    (folder / "rows.json").write_text(json.dumps(rows, indent=1, sort_keys=True), encoding="utf-8")


class RunFailed(Exception):
    """A revision did not run to its end; the message says where, and what it printed last."""


def environment(code: Path, home: Path, database_url: str) -> dict[str, str]:
    """The environment of every command: nothing of another instance, one thread, no network, no GPU."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ORCHESTRATOR_", "PREFECT_", "PYTHON")) and name != "DATABASE_URL"
    }
    return env | {
        # An editable install of another checkout is found last, by a finder behind this path.
        "PYTHONPATH": str(code),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ORCHESTRATOR_HOME": str(home),
        "ORCHESTRATOR_DEVICE": "cpu",
        "ORCHESTRATOR_JOBS_AT_ONCE": "1",
        "DATABASE_URL": database_url,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TZ": "UTC",
    }


def check_origin(code: Path, folder: Path, env: Mapping[str, str]) -> None:
    """Make sure that the revision's own packages are imported, and not those of an installed checkout.

    Raises:
        RunFailed: a package comes from elsewhere.
    """
    program = f"import importlib; [print(importlib.import_module(name).__file__) for name in {PACKAGES!r}]"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=dict(env), capture_output=True, text=True, check=False
    )
    for line in found.stdout.splitlines():
        if not Path(line).is_relative_to(code):
            raise RunFailed(f"{line} is imported, which is not under {code}.")
    if found.returncode:
        raise RunFailed(f"The packages under {code} can't be imported:\n{found.stderr}")


def run_logged(words: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path, status: int = 0) -> str:
    """What Python prints with these words; `log` gets that and what it says beside it.

    Raises:
        RunFailed: it did not end with `status`.
    """
    command = [sys.executable, *words]
    run = subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, text=True, errors="replace", check=False)
    log.write_text(run.stdout + run.stderr, encoding="utf-8")
    if run.returncode != status:
        last = "\n".join((run.stdout + run.stderr).splitlines()[-15:])
        raise RunFailed(f"`{' '.join(words)}` ended with status {run.returncode}, not {status}:\n{last}")
    return run.stdout


TABLES = ("cycles", "stages", "artifacts", "lineage_edges", "evaluations", "decisions", "deployments")
"""Whose rows are compared. Of the raters' tables nothing is: what entered of them is in the comparison set."""


def read_rows(database_url: str) -> dict[str, list[dict[str, Any]]]:
    """All columns of the ledger's tables, in the order of their ids."""
    import psycopg2

    connection = psycopg2.connect(database_url.replace("postgresql+psycopg2://", "postgresql://"))
    try:
        with connection.cursor() as cursor:
            found = {}
            for table in TABLES:
                cursor.execute(f"select to_jsonb(r) from {table} r")
                rows = [row[0] for row in cursor.fetchall()]
                found[table] = sorted(rows, key=lambda row: (row.get("id", row.get("child_id")), row.get("role", "")))
            return found
    finally:
        connection.close()


# --- Comparing two runs ---------------------------------------------------------------------------------------------

TIMES = {"created_at", "started_at", "ended_at", "job_seconds", "code_revision", "flow_run_id"}
"""Columns that say when, where and with which revision something was made."""


NAMED_ELSEWHERE = {"id", "cycle_id", "digest", "num_bytes"}
"""Columns of an artifact that its name, or the comparison of its files, stands for."""

Field = tuple[str, str]
"""Where something differs (file and path of keys), and how."""


@dataclass
class Artifact:
    """A row of a run with a name that another run's like it has too."""

    name: str
    row: dict[str, Any]
    parents: dict[str, str]
    """Names of what it was made from, by role."""
    folder: Path


@dataclass
class Difference:
    """How an artifact, or a row, differs between the runs."""

    name: str
    root: bool
    """Nothing that it was made from differs."""
    digest: bool = False
    weights: bool = False
    fields: list[Field] = field(default_factory=list)


def artifacts_of(folder: Path, rows: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Artifact]:
    """The artifacts of a run by name: kind and job, what it was made from, and a number where several are alike."""
    numbers = {row["id"]: row["number"] for row in rows["cycles"]}
    edges: dict[int, dict[str, int]] = {}
    for edge in rows["lineage_edges"]:
        edges.setdefault(edge["child_id"], {})[edge["role"]] = edge["parent_id"]
    found: dict[int, Artifact] = {}
    alike: Counter[str] = Counter()
    for row in rows["artifacts"]:
        settings = row["settings"]
        inner = settings.get("settings", {})
        words = [row["kind"]]
        if "job" in settings:
            words.append(f"by {settings['job']}")
        if inner.get("part"):
            words.append(str(inner["part"]))
        if inner.get("best_of", 1) > 1:
            words.append(f"best of {inner['best_of']}")
        cycle = row["cycle_id"]
        words.append("no cycle" if cycle is None else f"cycle {numbers[cycle]}")
        name = ", ".join(words)
        alike[name] += 1
        if alike[name] > 1:
            name = f"{name}, no. {alike[name]}"
        parents = {role: found[parent].name for role, parent in sorted(edges.get(row["id"], {}).items())}
        store = folder / "home" / "artifacts" / row["digest"].removeprefix("sha256:")
        found[row["id"]] = Artifact(name, row, parents, store)
    return {artifact.name: artifact for artifact in found.values()}


def compare(base: Path, other: Path) -> tuple[list[Difference], list[tuple[str, str]]]:
    """What differs between the runs in two folders, in the order of making; and every artifact with its verdict."""
    rows = [json.loads((folder / "rows.json").read_text(encoding="utf-8")) for folder in (base, other)]
    rows = [_without_folder(found, folder) for found, folder in zip(rows, (base, other), strict=True)]
    left, right = (artifacts_of(folder, found) for folder, found in zip((base, other), rows, strict=True))
    differences: list[Difference] = []
    verdicts: list[tuple[str, str]] = []
    differing: set[str] = set()
    for name in [*left, *(name for name in right if name not in left)]:
        if name not in left or name not in right:
            there = "the base" if name in left else "the other"
            weights = any(path.endswith(".safetensors") for path in _manifest(left.get(name) or right[name]))
            differences.append(Difference(name, True, True, weights, [("made", f"only by {there}")]))
            verdicts.append((name, f"only in {there}"))
            differing.add(name)
            continue
        found = compare_artifacts(left[name], right[name])
        found.root = not any(parent in differing for parent in left[name].parents.values())
        if not found.root:
            # A fingerprint is of settings and inputs: where an input differs it has to.
            found.fields = [(where, said) for where, said in found.fields if where != "row fingerprint"]
        if found.digest:
            differing.add(name)
        if found.digest or found.fields:
            differences.append(found)
        verdicts.append((name, _verdict(found)))
    return differences + compare_rows(rows[0], rows[1], left, right), verdicts


def _verdict(found: Difference) -> str:
    if found.weights:
        return "WEIGHTS DIFFER" if found.root else "weights differ (an input does)"
    if found.digest:
        return "files differ" if found.root else "files differ (an input does)"
    return "row differs" if found.fields else "equal"


def compare_artifacts(base: Artifact, other: Artifact) -> Difference:
    """Files by their manifests, JSON by field, safetensors by tensor; then the columns of the rows."""
    found = Difference(base.name, root=True, digest=base.row["digest"] != other.row["digest"])
    if found.digest:
        files, others = _manifest(base), _manifest(other)
        for path in sorted(files.keys() | others.keys()):
            if path not in files or path not in others:
                found.fields.append((path, f"only in the {'base' if path in files else 'other'}"))
                found.weights |= path.endswith(".safetensors")
            elif files[path] != others[path]:
                weights, fields = compare_files(base.folder / "files" / path, other.folder / "files" / path)
                found.weights |= weights
                found.fields += [(f"{path} {where}".strip(), said) for where, said in fields]
    left, right = _row(base), _row(other)
    for column in sorted(left.keys() | right.keys()):
        found.fields += fields_of(left.get(column), right.get(column), f"row {column}")
    if base.parents != other.parents:
        found.fields += fields_of(base.parents, other.parents, "row inputs")
    return found


def _row(artifact: Artifact) -> dict[str, Any]:
    row = {column: value for column, value in artifact.row.items() if column not in TIMES | NAMED_ELSEWHERE}
    if artifact.row["kind"] == "comparison_set":
        # Its settings hold a digest of the freeze with its moment, so these two differ from run to run.
        row["settings"] = {key: value for key, value in row["settings"].items() if key != "freeze"}
        row.pop("fingerprint", None)
    return row


def _manifest(artifact: Artifact) -> dict[str, str]:
    manifest = json.loads((artifact.folder / "manifest.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}


def compare_files(base: Path, other: Path) -> tuple[bool, list[Field]]:
    """Whether weights differ, and what differs, of two files whose bytes do."""
    if base.suffix == ".safetensors":
        return _compare_tensors(base, other)
    if base.suffix in (".json", ".jsonl"):
        left, right = (_parsed(file) for file in (base, other))
        return False, fields_of(left, right, "") or [("", "the same values in other bytes")]
    if base.suffix in (".md", ".txt", ".jinja"):
        left, right = (file.read_text(encoding="utf-8").splitlines() for file in (base, other))
        return False, fields_of(left, right, "lines")
    return False, [("", f"other bytes, {base.stat().st_size} | {other.stat().st_size} of them")]


def _parsed(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def _compare_tensors(base: Path, other: Path) -> tuple[bool, list[Field]]:
    import torch
    from safetensors import safe_open

    with safe_open(base, "pt") as left, safe_open(other, "pt") as right:
        fields = fields_of(left.metadata(), right.metadata(), "metadata")
        names, others = set(left.keys()), set(right.keys())
        differing = []
        for name in sorted(names | others):
            if name not in names or name not in others:
                differing.append(f"{name} only in the {'base' if name in names else 'other'}")
                continue
            a, b = left.get_tensor(name).contiguous(), right.get_tensor(name).contiguous()
            if a.dtype != b.dtype or a.shape != b.shape:
                differing.append(f"{name} {a.dtype} {tuple(a.shape)} | {b.dtype} {tuple(b.shape)}")
            # By their bytes: a NaN equals itself, and 0 is not -0.
            elif not torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (a, b))):
                differing.append(f"{name} by up to {(a.double() - b.double()).abs().max().item():.3g}")
    if differing:
        said = f"{len(differing)} of {len(names | others)} tensors differ: {'; '.join(differing[:3])}"
        fields.append(("", said + ("; …" if len(differing) > 3 else "")))
    return bool(differing), fields or [("", "the same tensors in other bytes")]


def fields_of(base: Any, other: Any, path: str) -> list[Field]:
    """Every leaf that differs with both values, and every key that only one of both has."""
    if isinstance(base, dict) and isinstance(other, dict):
        fields: list[Field] = []
        for key in sorted(base.keys() | other.keys()):
            where = f"{path}.{key}" if path else str(key)
            if key not in base or key not in other:
                side, value = ("base", base[key]) if key in base else ("other", other[key])
                fields.append((where, f"only in the {side}, {_short(value)}"))
            else:
                fields += fields_of(base[key], other[key], where)
        return fields
    if isinstance(base, list) and isinstance(other, list):
        if len(base) != len(other):
            return [(path, f"{len(base)} entries | {len(other)} entries")]
        both = enumerate(zip(base, other, strict=True))
        return [found for number, (a, b) in both for found in fields_of(a, b, f"{path}[{number}]")]
    # 1 and 1.0 are other bytes in a file, and true is no number.
    if type(base) is type(other) and base == other:
        return []
    return [(path, f"{_short(base)} | {_short(other)}")]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "..."


def compare_rows(
    base: Mapping[str, Sequence[dict[str, Any]]],
    other: Mapping[str, Sequence[dict[str, Any]]],
    base_artifacts: Mapping[str, Artifact],
    other_artifacts: Mapping[str, Artifact],
) -> list[Difference]:
    """Rows of the other tables in their order, ids of artifacts as their names."""
    found = []
    for table in TABLES:
        if table in ("artifacts", "lineage_edges"):
            continue
        left = _named(base[table], base_artifacts)
        right = _named(other[table], other_artifacts)
        fields = fields_of(left, right, "")
        if fields:
            found.append(Difference(f"table {table}", root=False, fields=fields))
    return found


def _named(rows: Sequence[dict[str, Any]], artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    names = {artifact.row["id"]: name for name, artifact in artifacts.items()}
    # A stage's fingerprint is its artifact's, whose difference is told there.
    return [
        {
            column: names.get(value, value) if column in ("artifact_id", "snapshot_id", "subject_id") else value
            for column, value in row.items()
            if column not in TIMES | {"fingerprint"}
        }
        for row in rows
    ]


def _without_folder(rows: Any, folder: Path) -> Any:
    """The rows with the run's own folder taken out of every path."""
    marked = json.dumps(rows).replace(json.dumps(str(folder))[1:-1], "<run>")
    return json.loads(marked)


# --- The report -----------------------------------------------------------------------------------------------------


def print_report(differences: Sequence[Difference], verdicts: Sequence[tuple[str, str]]) -> None:
    """Every artifact in a table, then what differs: root causes first."""
    width = max(len(name) for name, _ in verdicts)
    print(f"\n{'artifact':<{width}}  verdict")
    for name, verdict in verdicts:
        print(f"{name:<{width}}  {verdict}")
    roots = [difference for difference in differences if difference.root]
    for title, shown in (
        ("Root causes: these differ although nothing that they were made from does", roots),
        ("Follow from those above, or are rows about them", [each for each in differences if not each.root]),
    ):
        if shown:
            print(f"\n{title}")
        for difference in shown:
            print(f"* {difference.name}")
            for where, said in difference.fields[:SHOWN_FIELDS]:
                print(f"    {where}: {said}")
            if len(difference.fields) > SHOWN_FIELDS:
                print(f"    … and {len(difference.fields) - SHOWN_FIELDS} more")
    names = sorted({re.sub(r"\[\d+\]", "[]", where) for each in roots for where, _ in each.fields})
    if names:
        print("\nFields of the root causes, for the commit's message:")
        for name in names:
            print(f"    {name}")


def status_of(differences: Sequence[Difference]) -> int:
    """0 nothing differs, 1 something but no weights, 2 weights."""
    if any(difference.weights for difference in differences):
        return 2
    return 1 if differences else 0


# --- The command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run both revisions and compare; the exit status is in the module's first lines."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_artifacts", description=summary)
    parser.add_argument("--base", default=BASE, metavar="REV", help="revision to compare with (default %(default)s)")
    parser.add_argument("--other", metavar="REV", help="revision that is compared (default: the working tree)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the homes here; a run found is not repeated")
    parser.add_argument("--database-url", help="a Postgres that may create databases (default: one of its own)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="same-artifacts-") as scratch:
        folder = (args.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with server(args.database_url, Path(scratch) / "postgres") as create_database:
                base = made(args.base, "base", folder, create_database)
                other = made(args.other, "other", folder, create_database)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        differences, verdicts = compare(base, other)
        print_report(differences, verdicts)
        status = status_of(differences)
        equal = sum(verdict == "equal" for _, verdict in verdicts)
        said = ("all equal", "results differ, weights are equal", "WEIGHTS DIFFER")[status]
        print(f"\n{equal} of {len(verdicts)} artifacts equal: {said}.")
        return status


def made(revision: str | None, role: str, folder: Path, create_database: Callable[[str], str]) -> Path:
    """The folder of a revision's run: found where the same was asked of it before, or made now."""
    commit = _git("rev-parse", f"{revision}^{{commit}}").decode().strip() if revision else None
    run = folder / (f"{role}-{commit[:12]}" if commit else f"{role}-working-tree")
    complete, request = run / "complete", request_digest()
    if commit and complete.is_file() and complete.read_text(encoding="utf-8") == request:
        print(f"{role}: {revision}, found in {run}", flush=True)
        return run
    print(f"{role}: {revision or 'the working tree'}", flush=True)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    started_s = time.monotonic()
    run_revision(extract(commit, run / "code") if commit else ROOT, run, create_database(f"{role}_{os.getpid()}"))
    complete.write_text(request, encoding="utf-8")
    print(f"  {time.monotonic() - started_s:6.1f} s  in all", flush=True)
    return run


def extract(revision: str, folder: Path) -> Path:
    """The packages of a revision, in a new folder."""
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=_git("archive", revision, *PACKAGES), check=True)
    return folder


def request_digest() -> str:
    """Digest of everything a revision is asked: input files, commands, tables and packages."""
    packages = [f"{name}=={version(name)}" for name in RUN_WITH]
    digest = hashlib.sha256(json.dumps([COMMANDS, TABLES, packages, sys.version]).encode())
    with tempfile.TemporaryDirectory(prefix="same-artifacts-") as scratch:
        inputs = Path(scratch) / "inputs"
        write_inputs(inputs)
        for file in sorted(file for file in inputs.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(inputs)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False)
    if done.returncode:
        raise RunFailed(f"git {' '.join(words[:2])}: {done.stderr.decode().strip()}")
    return done.stdout


@contextmanager
def server(url: str | None, folder: Path) -> Iterator[Callable[[str], str]]:
    """A Postgres server; gives a function that creates an empty database and returns its URL."""
    import psycopg2

    def create(at: str, name: str) -> str:
        plain = at.replace("postgresql+psycopg2://", "postgresql://")
        connection = psycopg2.connect(plain)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'drop database if exists "{name}"')
                cursor.execute(f'create database "{name}"')
        finally:
            connection.close()
        return plain.rpartition("/")[0] + f"/{name}"

    if url is not None:
        yield lambda name: create(url, name)
        return
    # Of the tree that this script belongs to, whatever the revisions are that it compares.
    from orchestrator.instance.postgres import EmbeddedPostgres

    with EmbeddedPostgres(folder, settings={"fsync": "off", "synchronous_commit": "off"}) as started:
        yield lambda name: create(started.url_of("postgres"), name)


if __name__ == "__main__":
    sys.exit(main())
