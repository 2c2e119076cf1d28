"""Conformance checks of a policy and its supervised stages."""
