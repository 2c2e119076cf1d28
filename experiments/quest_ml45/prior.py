"""Stage 2 of QueST on ML45: the prior over skill tokens, given picture, robot state and task.

Question: how often does the imitation-learned policy succeed on contexts that it was not shown?
Source: QueST (Mete et al. 2024), section 4.2; presets.py says what the paper and the released code do.
Expected: 91.0 % over ML45 (RIPT-VLA, table 2), 84.3 % as others have reproduced it.
Hardware: one GPU of 24 GB for the published size; on a CPU name few tasks and a smaller policy.
Data: as for stage 1, whose run it starts from:

    python experiments/quest_ml45/prior.py paper --demos.folder data --start-from runs/quest-ml45-autoencoder/<run>

An interrupted run goes on with `ript-ray resume RUN`.
"""

from presets import of_stage

from ript_ray.cli.launch import launch_preset

EXPERIMENTS = of_stage("prior")

if __name__ == "__main__":
    launch_preset(EXPERIMENTS, __doc__)
