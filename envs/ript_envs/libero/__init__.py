"""LIBERO: 130 manipulation tasks of a Panda arm in five suites."""
