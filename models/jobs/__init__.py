"""Training jobs: one process each, `python -m models.jobs.<name> --spec spec.json --out DIR`.

`runtime.py` holds what they share: the spec, metrics, checkpoints, and the atomic publication of a result.
"""
