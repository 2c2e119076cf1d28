"""The policy contract and one folder per model."""
