"""Rewards with learned weights."""
