"""Serve a work pool: `python -m flows.worker --pool cpu|gpu`.

One GPU, one job: the gpu pool's worker runs one flow at a time. Where there are more GPUs, start more workers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import get_client
from prefect.workers.process import ProcessWorker

from flows.engine import WORKER_PID
from flows.healing import crash_stale_runs
from flows.register import ensure_pool
from orchestrator.errors import OrchestratorError
from orchestrator.instance.identity import own_prefect

LIMITS = {"cpu": 8, "gpu": 1}
"""Runs at a time. On the cpu pool most of them wait for the gpu pool."""


async def serve(pool: str, name: str, limit: int) -> None:
    """Serve the pool until cancelled; first end what a predecessor left behind."""
    await asyncio.to_thread(own_prefect)
    async with get_client() as client:
        await ensure_pool(client, pool)
        for run_name in await crash_stale_runs(client, pool, name):
            print(f"run {run_name!r} of an earlier worker is set to Crashed", flush=True)
    worker = ProcessWorker(work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False)
    await worker.start(printer=lambda *words: print(*words, flush=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser(prog="orchestrator worker", description="Run a Prefect worker for a pool.")
    parser.add_argument("--pool", choices=sorted(LIMITS), required=True)
    parser.add_argument("--name", help="name of the worker; keep it over restarts (default: the pool and this host)")
    parser.add_argument("--limit", type=int, help="runs at a time (default: cpu 8, gpu 1)")
    args = parser.parse_args(argv)
    # Flow processes are started as `python -m flows.engine`: it must be this Python, and die with this process.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ[WORKER_PID] = str(os.getpid())

    async def until_signalled() -> None:
        task = asyncio.current_task()
        assert task is not None
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
        await serve(args.pool, args.name or f"{args.pool} on {socket.gethostname()}", args.limit or LIMITS[args.pool])

    try:
        asyncio.run(until_signalled())
    except asyncio.CancelledError:
        print("worker stopped", flush=True)
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
