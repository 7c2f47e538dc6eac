"""How a policy begins: pretraining from scratch, and context distillation.

Read `distillation.py` first for the maths.
"""
