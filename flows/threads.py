"""Call what blocks, stages above all, from a flow: in a thread, whose job ends when the flow is ended.

A thread can't be cancelled. Without this the flow's process would wait for its job, until Prefect kills both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from orchestrator.instance import training_jobs

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that blocks; where this is cancelled, ask the job that it runs to end."""
    stop = threading.Event()
    token = training_jobs.ended.set(stop)
    try:
        # The thread gets a copy of this context.
        return await asyncio.to_thread(function, *args, **kwargs)
    except BaseException:
        stop.set()
        raise
    finally:
        training_jobs.ended.reset(token)
