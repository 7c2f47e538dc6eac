"""Processes on this machine: what `orchestrator up` starts, and training jobs.

Read `up.py` first, then `training_jobs.py`.
"""
