"""Several settings and seeds of an experiment, side by side on this machine or a cluster, in a table and a plot.

python experiments/sweep.py experiments.quickstart --over ppo.learning-rate=1e-4,3e-4 --seeds 0-4
"""

from ript_ray.cli.sweep import main

if __name__ == "__main__":
    main()
