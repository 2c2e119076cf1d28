"""Tests of both packages."""

import os

# As the commands do, before torch is imported: else waiting OpenMP threads spin, and slow down what runs beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
