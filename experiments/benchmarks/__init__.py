"""Benchmarks of the system: each measures one cost of the runtime or the policy and prints a table.

Run one as a module from the root of the checkout; see `--help` for its sizes:

    python -m experiments.benchmarks.throughput
"""
