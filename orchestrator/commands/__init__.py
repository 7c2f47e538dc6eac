"""One module per command, in the four groups that `orchestrator --help` shows.

Each has `configure(parser)` and `run(args) -> exit status`; `orchestrator/cli.py` lists them.
"""
