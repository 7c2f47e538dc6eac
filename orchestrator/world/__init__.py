"""A small world whose right answers are known: requests, replies, truth, synthetic raters, and the demo on top.

Only the `demo` command imports this package: models, flows and servers never know the truth. Read `world.py` first.
"""
