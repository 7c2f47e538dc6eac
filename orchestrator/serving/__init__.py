"""The policy server: several snapshots at once behind an OpenAI-compatible address.

Start with `app.py` (routes), then `snapshots.py` (which weights are held, and what `policy-live` means) and
`decoding.py` (the one thread that decodes).
"""
