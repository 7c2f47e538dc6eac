"""The policy and its training with PPO: rollouts, learning, the watch over both, snapshots.

Read `ppo.py` first for the maths, then `training.py` for the loop; defaults are in `settings.py`.
"""
