"""Messages to ids and back, the tokenizer made ready for that, and files of dialogues.

Read `format.py` first: no other module turns messages into ids.
"""
