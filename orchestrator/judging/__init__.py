"""Is it good? Elo, gates, forecasts, the law, robustness: numbers and verdicts, no stage.

Read `gates.py` first, then `evaluations.py` and `elo.py`.
"""
