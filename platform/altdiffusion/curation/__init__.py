"""Curation operators: select, deduplicate, download, score, encode. No Ray, no MLflow."""
