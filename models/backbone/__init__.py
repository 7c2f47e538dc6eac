"""What any decoder is computed with: layers by hand, adapters, number formats, batches. No chat, no policy.

Read `trunk.py` first, then `llama_layer.py`.
"""
