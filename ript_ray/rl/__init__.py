"""Algorithm 1 of RIPT-VLA, independent of Ray, storage, and any particular policy or benchmark."""
