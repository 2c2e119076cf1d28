"""Metrics log, MLflow, console, curve."""
