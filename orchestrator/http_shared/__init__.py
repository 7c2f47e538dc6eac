"""What the feedback app and the policy server share: the application's frame, limits, metrics.

Read `asgi.py` first.
"""
