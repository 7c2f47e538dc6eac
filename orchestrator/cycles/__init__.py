"""Which cycle is open, what the next run has to do, starting and following a run.

Read `record.py` first, then `turn.py`.
"""
