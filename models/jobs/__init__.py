"""Training jobs: one process each, `python -m models.jobs.<name> --spec spec.json --out DIR`.

`models/runtime/job.py` holds what they share: the spec, metrics, checkpoints, and the atomic publication of a result.
"""

import gc

# torch and transformers make a great many objects that all stay; looking among them for garbage is a fifth of the time
# that their import takes, and a short cycle imports them six times.
_collecting = gc.isenabled()
gc.disable()
try:
    import models.model_folders.saving  # noqa: F401
finally:
    if _collecting:
        gc.enable()
