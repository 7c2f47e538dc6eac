"""The feedback app: people write, read two replies and choose. A JSON API and pages over the same functions.

Start with `app.py` (routes); `pair_sampling.py` has how the two replies come about, `orchestrator/conversations/` what
is written to the database. Needs no torch.
"""
