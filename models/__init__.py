"""Language models: chat format, preference model, PPO, evaluation, and the jobs that train them.

Needs the standard library, numpy, safetensors, torch and transformers, and nothing else: no database, no
Prefect, no setting from the environment. Read `models/runtime/job.py` next; the floors stand in
`tests/test_imports.py`.
"""

import os

# Everything is loaded from local folders. Must be set before transformers is imported, which reads it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
