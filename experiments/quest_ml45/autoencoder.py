"""Stage 1 of QueST on ML45: actions <-> skill tokens.

Question: how well do 8 tokens out of 1000 stand for 32 actions of 45 tasks?
Source: QueST (Mete et al. 2024), section 4.1; presets.py says what the paper and the released code do.
Expected: a mean action error that stops falling, also on held-out demonstrations; nothing acts yet.
Hardware: one GPU of 24 GB for the published size; on a CPU name few tasks and a smaller policy.
Data: 102 demonstrations of each task (two are held out), seen through the camera:

    ript-ray demos metaworld --task ml45-train --episodes 102 --out data
    python experiments/quest_ml45/autoencoder.py paper --demos.folder data

An interrupted run goes on with `ript-ray resume RUN`.
"""

from presets import of_stage

from ript_ray.cli.launch import launch_preset

EXPERIMENTS = of_stage("autoencoder")

if __name__ == "__main__":
    launch_preset(EXPERIMENTS, __doc__)
