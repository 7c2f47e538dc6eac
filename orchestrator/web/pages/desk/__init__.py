"""The pages of those who look after raters, pairings and Elo.

Read `routes.py` first.
"""
