"""Models on disk: loading, saving with card and tokenizer, and the reply that proves a loaded policy.

Read `saving.py` first.
"""
