"""Comparisons per second through the whole chain: raters, feedback app, policy server and Postgres, as processes.

    python benchmarks/feedback_throughput.py [--raters 32] [--comparisons 600] [--tokens 20] [--assert-at-least 25]

A policy of the demo's size (hidden 128, 4 layers, vocabulary 1024) with random weights answers with replies of
`--tokens` tokens; every rater holds dialogues of two turns and compares each pair at once. Runs on one machine, the
raters included, and prints the latency of every kind of request as the rater sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

import httpx  # noqa: E402
import torch  # noqa: E402
from sqlalchemy import create_engine, func, select  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from db import tables as t  # noqa: E402
from db.migrate import upgrade  # noqa: E402
from models.jobs import prepare_policy  # noqa: E402
from models.runtime.job import Job  # noqa: E402
from orchestrator.instance.ports import free_port  # noqa: E402
from orchestrator.instance.postgres import EmbeddedPostgres  # noqa: E402
from orchestrator.people.raters import create_rater  # noqa: E402
from orchestrator.store import deployments  # noqa: E402
from orchestrator.store.artifacts import ArtifactStore  # noqa: E402

SENTENCE = "please tell me about the river and the seven green hills near our old town today"


def write_policy(folder: Path) -> Path:
    """A prepared policy of the demo's size with random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1020,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE], trainer)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "source")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(
        folder / "source"
    )
    prepare_policy.run(Job({"job": "prepare_policy", "inputs": {"source": str(folder / "source")}}, folder))
    return folder / "result"


def put_live(url: str, digest: str, tokens: int, num_raters: int) -> list[str]:
    """Deploy the policy and add raters; gives their tokens."""
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        cycle = t.Cycle(
            number=0,
            name="benchmark",
            state="promoted",
            config={"serving": {"max_reply_tokens": tokens}},
            ended_at=func.now(),
        )
        artifact = t.Artifact(
            kind="snapshot", fingerprint="0" * 64, digest=digest, settings={}, results={}, num_bytes=0
        )
        session.add_all([cycle, artifact])
        session.flush()
        decision = t.Decision(
            snapshot_id=artifact.id, decision="promote", reasons=[], evidence={}, decided_by="benchmark"
        )
        session.add(decision)
        session.flush()
        deployments.deploy(session, artifact.id, decision.id, cycle.id)
        tokens_of_raters = [
            create_rater(session, f"rater-{number}", kind="synthetic")[1] for number in range(num_raters)
        ]
    engine.dispose()
    return tokens_of_raters


@contextmanager
def service(command: str, port: int, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """One of our services as a process, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", command, "--port", str(port)], cwd=ROOT, env=env
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1, trust_env=False).json()["status"] == "ok":
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} did not start")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """CPU time of a process, with that of the children it has now if asked."""
    pids = [pid]
    if children:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids += [int(child) for child in listed]
    total = 0.0
    for one in pids:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return total


async def rate(url: str, tokens: list[str], comparisons: int) -> dict[str, list[float]]:
    """Hold dialogues with all raters at once until so many comparisons are made; gives latencies by request."""
    latencies: dict[str, list[float]] = defaultdict(list)
    begun = 0
    limits = httpx.Limits(max_connections=len(tokens), max_keepalive_connections=len(tokens))

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:

        async def post(name: str, token: str, path: str, body: dict[str, object]) -> dict[str, int]:
            began = time.monotonic()
            response = await client.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
            latencies[name].append(time.monotonic() - began)
            response.raise_for_status()
            answer: dict[str, int] = response.json()
            return answer

        async def sit(token: str) -> None:
            nonlocal begun
            while begun < comparisons:
                dialogue = await post("dialogue", token, "/api/dialogues", {"task": "helpful"})
                parent = None
                for turn in range(2):
                    begun += 1
                    body = {"content": SENTENCE[turn:], "parent_id": parent, "client_key": f"m{turn}"}
                    path = f"/api/dialogues/{dialogue['dialogue_id']}/messages"
                    message = await post("message", token, path, body)
                    path = f"/api/messages/{message['message_id']}/pairs"
                    pair = await post("pair", token, path, {"client_key": f"p{turn}", "wait": True})
                    path = f"/api/pairs/{pair['pair_id']}/comparison"
                    compared = await post("comparison", token, path, {"side": "a", "strength": 2})
                    parent = compared["continue_from"]

        await asyncio.gather(*(sit(token) for token in tokens))
    return latencies


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=32, help="dialogues at the same time")
    parser.add_argument("--comparisons", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=20, help="tokens per reply")
    parser.add_argument("--assert-at-least", type=float, default=0.0, metavar="PER_SECOND")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.chmod(home, 0o755)
        store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
        digest = store.publish(write_policy(home / "policy")).digest
        with EmbeddedPostgres(home / "postgres") as postgres:
            upgrade(postgres.url)
            tokens = put_live(postgres.url, digest, args.tokens, args.raters)
            policy_port, feedback_port = free_port(), free_port()
            env = os.environ | {
                "DATABASE_URL": postgres.url,
                "ORCHESTRATOR_HOME": str(home),
                "ORCHESTRATOR_POLICY_URL": f"http://127.0.0.1:{policy_port}",
                "OMP_NUM_THREADS": "1",
            }
            with (
                service("serve-policy", policy_port, env) as policy,
                service("serve-feedback", feedback_port, env) as feedback,
            ):
                url = f"http://127.0.0.1:{feedback_port}"
                asyncio.run(rate(url, tokens[:4], 16))
                processes = {"policy server": policy.pid, "feedback app": feedback.pid, "raters": os.getpid()}
                assert postgres.pid is not None
                before = {name: cpu_seconds(pid) for name, pid in processes.items()}
                before["Postgres"] = cpu_seconds(postgres.pid, children=True)
                began = time.monotonic()
                latencies = asyncio.run(rate(url, tokens, args.comparisons))
                seconds = time.monotonic() - began
                used = {name: cpu_seconds(pid) - before[name] for name, pid in processes.items()}
                used["Postgres"] = cpu_seconds(postgres.pid, children=True) - before["Postgres"]
            engine = create_engine(postgres.url)
            with Session(engine) as session:
                stored = session.scalar(select(func.count(t.Comparison.id)))
            engine.dispose()
    made = len(latencies["comparison"])
    assert stored == made + 16, f"{made + 16} comparisons were acknowledged, {stored} are in the database"
    speed = made / seconds
    print(f"{made} comparisons by {args.raters} raters in {seconds:.1f} s: {speed:.1f} per second")
    for name, times in latencies.items():
        p99 = statistics.quantiles(times, n=100)[98]
        print(f"  {name:<10} median {1000 * statistics.median(times):6.1f} ms   p99 {1000 * p99:6.1f} ms")
    print("  CPU ms per comparison: " + ", ".join(f"{name} {1000 * s / made:.1f}" for name, s in used.items()))
    if speed < args.assert_at_least:
        print(f"below {args.assert_at_least} per second")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
