"""Objectives on the forward process: images are noised again, and predictions there are trained."""
