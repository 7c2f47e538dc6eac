"""Prefect flows. They order stages and compute nothing; `cycle.py` is the loop on one screen.

`cycle.py` runs on the `cpu` work pool, the flows of `training.py` on the `gpu` pool. `register.py` creates the Prefect
deployments, `worker.py` serves a pool, `healing.py` ends runs that a crash left "Running".
"""

from orchestrator.terminal import print_whatever_comes

# Each module of ours is a command too.
print_whatever_comes()
