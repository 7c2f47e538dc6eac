"""How far a prompt lies from those that a policy was trained to answer.

Read `detector.py` first.
"""
