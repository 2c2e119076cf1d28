"""Supervised stages before post-training."""
