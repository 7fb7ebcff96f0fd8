"""Checkpoints: their format, how they are written, and how they are found again."""
