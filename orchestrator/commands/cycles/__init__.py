"""Commands for cycles, experiments, Elo and artifacts: what is trained, what came of it, and what of that."""
