"""Reward functions with the call signature of TRL's, and what they are built from."""
