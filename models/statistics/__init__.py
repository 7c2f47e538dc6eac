"""Numbers from numbers: intervals, fits, the square root law. No torch, so that reports may import it.

Read `intervals.py` first.
"""
