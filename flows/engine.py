"""The process of one flow run, `python -m flows.engine`: Prefect's engine, ending with the worker that started it.

Without this the flow of a killed worker trains on, while the worker's successor knows nothing of it.
"""

from __future__ import annotations

import os
import runpy

from orchestrator.instance.launch import end_with_parent

WORKER_PID = "ORCHESTRATOR_WORKER_PID"


def main() -> None:
    """Arm the death signal, then run the flow."""
    worker = os.environ.get(WORKER_PID)
    if worker:
        end_with_parent(int(worker))
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
