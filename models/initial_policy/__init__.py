"""How a policy begins: pretraining from scratch, context distillation, and the preflight of a published model.

Read `distillation.py` first for the maths; `preflight.py` tries a model as all the rest would use it.
"""
