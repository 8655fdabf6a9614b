"""Rewards of the Shapes world: they read pixels."""
