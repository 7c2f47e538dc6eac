"""How the policy server's throughput grows with concurrent requests: decoding in one batch.

    python benchmarks/policy_throughput.py [--concurrent 16] [--requests 160] [--tokens 40] [--assert-at-least 4]

A policy of the demo's size (hidden 128, 4 layers, vocabulary 1024) with random weights, the server as a process of its
own, requests over HTTP from this one. Prints requests and tokens per second one at a time and with many at once, and
their ratio; exits with 1 where the ratio misses the bound.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import httpx  # noqa: E402
import torch  # noqa: E402
from feedback_throughput import put_live, service, write_policy  # noqa: E402

from db.migrate import upgrade  # noqa: E402
from orchestrator.instance.ports import free_port  # noqa: E402
from orchestrator.instance.postgres import EmbeddedPostgres  # noqa: E402
from orchestrator.store.artifacts import ArtifactStore  # noqa: E402


@contextmanager
def served_policy(home: Path, tokens: int) -> Iterator[str]:
    """A policy server over a policy of the demo's size, as a process; gives its address."""
    home.chmod(0o755)
    store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
    digest = store.publish(write_policy(home / "policy")).digest
    with EmbeddedPostgres(home / "postgres") as postgres:
        upgrade(postgres.url)
        put_live(postgres.url, digest, tokens, 0)
        port = free_port()
        env = os.environ | {"DATABASE_URL": postgres.url, "ORCHESTRATOR_HOME": str(home), "OMP_NUM_THREADS": "1"}
        with service("serve-policy", port, env):
            yield f"http://127.0.0.1:{port}"


async def rate(url: str, concurrent: int, requests: int, tokens: int) -> tuple[float, float]:
    """Requests and tokens per second with so many requests at a time."""
    left = iter(range(requests))
    decoded = 0

    async def client_loop(client: httpx.AsyncClient) -> None:
        nonlocal decoded
        for seed in left:
            body = {
                "model": "policy-live",
                "messages": [{"role": "user", "content": "please tell me about the river"}],
                "max_tokens": tokens,
                "seed": seed,
            }
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            decoded += answer.json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        began = time.perf_counter()
        await asyncio.gather(*(client_loop(client) for _ in range(concurrent)))
        seconds = time.perf_counter() - began
    return requests / seconds, decoded / seconds


def main() -> int:
    """Measure and print; returns 1 where the ratio misses the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--assert-at-least", type=float)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, served_policy(Path(folder), args.tokens) as url:
        asyncio.run(rate(url, args.concurrent, args.concurrent, args.tokens))  # warm-up
        one, one_tokens = asyncio.run(rate(url, 1, max(10, args.requests // 4), args.tokens))
        many, many_tokens = asyncio.run(rate(url, args.concurrent, args.requests, args.tokens))
    print(f"one at a time:  {one:7.1f} requests/s   {one_tokens:8.0f} tokens/s")
    print(f"{args.concurrent} at a time:   {many:7.1f} requests/s   {many_tokens:8.0f} tokens/s")
    ratio = many_tokens / one_tokens
    print(f"ratio {ratio:.2f}")
    return int(args.assert_at_least is not None and ratio < args.assert_at_least)


if __name__ == "__main__":
    sys.exit(main())
