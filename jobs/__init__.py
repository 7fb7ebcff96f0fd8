"""Entry points for `ray job submit` (and for `python -m`): parse, validate, plan, run, record."""
