"""RIPT: reinforcement interactive post-training of vision-language-action policies on Ray."""

__version__ = "0.1.0"
