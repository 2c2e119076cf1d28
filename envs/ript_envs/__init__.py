"""Benchmark environments, independent of policies and learning."""
