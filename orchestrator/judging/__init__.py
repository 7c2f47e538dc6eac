"""Is it good? Elo, gates, forecasts, the law, robustness: numbers alone, no stage and no text.

Read `gates.py` first, then `evaluations.py` and `elo.py`.
"""
