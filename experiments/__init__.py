"""One launcher per experiment: each states the question, the source, the expected result and every setting.

Run a launcher as a module from the root of the checkout; every setting is also an option, see `--help`:

    python -m experiments.quickstart --seed 1

`experiments.benchmarks` measures the system itself rather than a policy.
"""
