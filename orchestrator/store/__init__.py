"""Artifacts, the ledger that knows them, where they came from, and what is live.

Read `ledger.py` first, then `artifacts.py`.
"""
