"""The feedback app: people write, read two replies and choose. A JSON API now; the pages use the same functions.

Start with `app.py` (routes); `dialogues.py` and `comparisons.py` hold what is written to the database, `sampling.py`
how the two replies come about. Needs no torch.
"""
