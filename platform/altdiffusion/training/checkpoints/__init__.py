"""Checkpoints: their form, how they are written beside the training, and how they are found again."""
