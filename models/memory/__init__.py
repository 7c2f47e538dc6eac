"""What a training job will hold in memory, role by role, known before anything is loaded.

Read `needs.py` first: bytes by formula. What a pass through a model holds is counted on tensors without memory
(`passes.py`); `room.py` compares with what is there and refuses.
"""
