"""The decode engine and its decoders: generic, by hand for Llama and its like, and of fixed shapes for a GPU.

Read `engine.py` first.
"""
