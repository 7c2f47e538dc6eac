"""What raters write, are shown and choose; no HTTP.

Read `dialogues.py` first, then `pairs.py`; `contestants.py` for who answers.
"""
