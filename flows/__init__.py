"""Prefect flows. They order stages and compute nothing; `cycle.py` is the loop on one screen.

`cycle.py` runs on the `cpu` work pool, the flows of `training.py` on the `gpu` pool. `register.py` creates the Prefect
deployments, `worker.py` serves a pool, `healing.py` ends runs that a crash left "Running".
"""

import os

from orchestrator.http_shared.proxies import mend_for_prefect
from orchestrator.terminal import print_whatever_comes

# Prefect's own clients read the environment, in the server, the workers, the flow runs and our commands alike: before
# any of them is made.
mend_for_prefect(os.environ)
# Each module of ours is a command too.
print_whatever_comes()
