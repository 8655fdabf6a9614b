"""Checks of a reward: form, range, determinism, batches."""
