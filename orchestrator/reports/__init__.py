"""What people are told: the rows of reports, Markdown, tables for a terminal.

Read `cycle.py` first; `pictures/` draws.
"""
