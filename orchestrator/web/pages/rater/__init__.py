"""The pages that a rater sees.

Read `routes.py` first.
"""
