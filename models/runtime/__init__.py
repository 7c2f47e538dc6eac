"""What every training job shares: spec, metrics, checkpoints, settings, random numbers, memory.

Read `job.py` first: the contract of a process that may be killed at any moment. Knows no chat and no model.
"""
