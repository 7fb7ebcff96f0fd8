"""Evaluation: the judge and the per-language retrieval table."""
