"""Evaluation: the judge and the table of retrieval accuracy per language."""
