"""Crash-safe file writing: atomic files, hashed directories, append-only logs."""
