"""Metrics log, MLflow, TensorBoard, console, curve."""
