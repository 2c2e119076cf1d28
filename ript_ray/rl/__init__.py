"""Algorithm 1 of RIPT-VLA. No Ray, no disk, no policy or benchmark by name."""
