"""Entry points for `ray job submit` and `python -m`: each parses, validates, plans, runs and records one job."""
