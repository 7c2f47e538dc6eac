"""Who takes part: how they come in, what work they are offered, how good it is, how they leave.

Read `raters.py` first, then `access.py`; `quality.py` has the figures that the desk shows.
"""
