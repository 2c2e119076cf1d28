"""The supervised stages that come before post-training."""
