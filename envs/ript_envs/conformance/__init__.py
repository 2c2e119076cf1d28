"""Conformance checks of a benchmark."""
