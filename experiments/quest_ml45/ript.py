"""Stage 3 of QueST on ML45: RIPT.

Question: how much does post-training with nothing but success or failure add to the imitation-learned policy?
Source: RIPT-VLA (Tan et al. 2025), table 2; presets.py says what the paper and the released code do.
Expected: 92.2 % over ML45 with all demonstrations (+1.2), +12.4 with five per task.
Hardware: as many cores as there are actors, which draw pictures; the learner is one process.
Data: none but contexts. It starts from the run of stage 2, or from an imported checkpoint of the authors:

    python experiments/quest_ml45/ript.py released-code --start-from runs/quest-ml45-prior/<run>
    python experiments/quest_ml45/ript.py paper --start-from models/quest-ml45

An interrupted run goes on with `ript-ray resume RUN`.
"""

from presets import of_stage

from ript_ray.cli.launch import launch_preset
from ript_ray.types import RIPT

EXPERIMENTS = of_stage(RIPT)

if __name__ == "__main__":
    launch_preset(EXPERIMENTS, __doc__)
