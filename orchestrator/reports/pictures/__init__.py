"""The figures of reports, and nothing but figures.

Read `catalogue.py` first: which picture a report shows, and of what.
"""
