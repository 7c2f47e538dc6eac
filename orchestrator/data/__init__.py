"""Files and rows in; what training jobs read out. Knows no stage and no store.

Read `freeze.py` first, then `comparison_set.py`; `importing.py` for how files become rows.
"""
