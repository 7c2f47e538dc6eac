"""The preference model: its data, loss and training, and what it is worth on what it never saw.

Read `model.py` first, then `training.py`; `trees.py` for how a dialogue is computed once.
"""
